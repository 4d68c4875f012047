"""Reader: reads prompts beside the thread that decodes."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from dl_techniques.generation.prompts import prompt_batch
from dl_techniques.generation.rolling_batch import Joining, choose_first
from dl_techniques.serving.reading_groups import positions_read, rows_read
from dl_techniques.serving.running import Running

Read = tuple[Sequence[Running], Joining | Exception]


class Reader:
    """Reads prompts, in a thread of its own where answers on their way go on meanwhile.

    Its other methods must be called from one thread.

    Args:
        model: Reads.
        on_read: Called, in the reader's thread, whenever something was read.
    """

    def __init__(self, model, on_read: Callable[[], None]):
        self._model, self._on_read = model, on_read
        self._seconds = self._positions = 0.0  # Of late, when nothing was compiled.
        self._thread = ThreadPoolExecutor(1, "serving-reader")
        self._groups: deque[tuple[Sequence[Running], Future[list[Read]]]] = deque()

    @property
    def position_seconds(self) -> float:
        """How long it took lately to read a position; 0 if nothing is known of it."""
        return self._seconds / self._positions if self._positions else 0.0

    @property
    def rows(self) -> int:
        """How many requests are read, or were and are not taken yet."""
        return sum(len(group) for group, _ in self._groups)

    @property
    def is_behind(self) -> bool:
        """Whether a group waits for another to be read."""
        return any(not (future.running() or future.done()) for _, future in self._groups)

    @property
    def has_read(self) -> bool:
        """Whether there is something to take."""
        return bool(self._groups) and self._groups[0][1].done()

    def read(self, group: Sequence[Running], beside: bool = True) -> None:
        """Let requests be read together, after those that wait already.

        Args:
            group: Who has begun.
            beside: Return at once; otherwise they are read in the caller's thread.
        """
        if beside:
            future = self._thread.submit(self._read, group)
            future.add_done_callback(lambda _: self._on_read())
        else:
            future = Future()
            future.set_result(self._read(group))
        self._groups.append((group, future))

    def take(self) -> list[Read]:
        """Return what was read since the last time: groups, or one request and why it failed."""
        taken = []
        while self.has_read:
            taken += self._groups.popleft()[1].result()
        return taken

    def close(self) -> None:
        """End the thread, once it has read what it reads now; nothing is handed on any more."""
        self._thread.shutdown(cancel_futures=True)

    def _read(self, group) -> list[Read]:
        model = self._model
        engine, pad_id = model.generation_engine(), model.processor.pad_token_id
        began, compilations = time.perf_counter(), engine.programs.compilations
        try:
            parts = [running.part for running in group]
            inputs = prompt_batch(engine, model, parts, model.vision_cache)
            new_tokens = max(running.wanted.max_new_tokens for running in group)
            earlier = [running.earlier for running in group if running.earlier is not None]
            reading = engine.read(inputs, new_tokens, pad_id, earlier, rows_read(group))
            joining = choose_first(engine, reading, [running.wanted for running in group])
            if engine.programs.compilations == compilations:
                self._seconds = self._seconds / 2 + time.perf_counter() - began
                self._positions = self._positions / 2 + positions_read(group)
            return [(group, joining)]
        except Exception as error:  # Whatever it is ends requests, not the thread.
            if len(group) == 1:
                return [(group, error)]
            # Whose fault it is shows alone.
            return [read for running in group for read in self._read([running])]
