"""RollingBatch: rows that decode together, and join and leave between steps.

What vLLM and JetStream call continuous batching: rows are read by themselves, then put into a batch
whose shapes do not depend on who is in it (https://www.usenix.org/conference/osdi22/presentation/yu).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from keras import ops

from dl_techniques.generation.buckets import bucket, pad_to
from dl_techniques.generation.engine import TOKEN_BUCKET, Engine, Reading, Request
from dl_techniques.generation.programs import Choice
from dl_techniques.generation.sampling import uniform_numbers

# The most steps of one call, which `_room_for_news` and the numbers for draws have room for.
STEPS = 4
# The most of the likeliest ids that a request can ask for, as many as OpenAI's clients can.
MOST_TOP_LOGPROBS = 20
_KEPT = ("cache", "mask", "token", "held")


@dataclass(eq=False)
class Seat:
    """A row's place in a batch.

    Attributes:
        request: What is done for it.
        start: The slot of its first new token.
        row: Its row; others may take its place once it has left.
        ids, logprobs: Its new tokens so far, the one that ended it included.
        top_logprobs: For each of them the likeliest ids with their log-probabilities, likeliest
            first, as many as the request asks for.
        ended: Whether it has ended, by a stop id or by the number of tokens.
    """

    request: Request
    start: int
    row: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    ended: bool = False

    def __post_init__(self):
        self.settings = self.request.sampler.settings()
        room = bucket(self.request.max_new_tokens, TOKEN_BUCKET) + STEPS
        draws = not self.request.sampler.is_greedy
        self.uniform = uniform_numbers(self.request.seeds, room)[0] if draws else np.zeros(room)

    @property
    def remaining(self) -> int:
        """How many tokens may follow."""
        return self.request.max_new_tokens - len(self.ids)

    def push(self, ids, logprobs, top_logprobs) -> None:
        """Take new tokens, up to the one that ends the row."""
        for token, logprob, likeliest in zip(ids, logprobs, top_logprobs, strict=True):
            if self.ended:
                return
            self.ids.append(token)
            self.logprobs.append(logprob)
            self.top_logprobs.append(likeliest[: self.request.top_logprobs])
            self.ended = token in self.request.stop_ids or not self.remaining


@dataclass
class Joining:
    """Rows that were read and have their first tokens, but no place in a batch yet.

    Attributes:
        seats: One for each request.
        state: See `programs`; behind the rows of the requests there may be padding.
    """

    seats: list[Seat]
    state: dict[str, Any]


def choose_first(engine: Engine, reading: Reading, requests: Sequence[Request]) -> Joining:
    """Choose the first tokens of rows that were read; the reading is used up.

    Args:
        engine: Has read.
        reading: Its first rows are those of the requests; others are padding.
        requests: One for each row.

    Raises:
        ValueError: if fewer rows were read, or if a request has several rows or logits processors.
    """
    rows = len(reading.logits)
    if any(len(request.seeds) != 1 or request.processors for request in requests):
        raise ValueError("A request that joins has one row and no logits processors.")
    if rows < len(requests):
        raise ValueError(f"{rows} rows were read for {len(requests)} requests.")
    seats = [Seat(request, reading.start, k) for k, request in enumerate(requests)]
    _, options, choice = _arguments(seats, rows, engine.known_ids)
    state = {"ended": np.zeros(rows, bool), **_room_for_news(rows, 1, choice)}
    if choice.penalises:
        state["held"] = reading.held(engine.model.vocab_size)
        for seat in seats:
            state["held"][seat.row, list(seat.request.known)] = True
    state = engine.programs.choose(reading.logits, state, np.int32(0), options, choice)
    _push(seats, state, 1)
    engine.statistics.add_prefill(reading.inputs["attention_mask"].sum(), reading.began)
    return Joining(seats, _kept({**state, "cache": reading.cache, "mask": reading.mask}))


class RollingBatch:
    """A batch of 1, 4, 16, ... or `rows` rows; larger or smaller as rows join and leave.

    A row's tokens are those that it gets alone. All shapes are buckets: few numbers of rows, and
    the slots of the longest row. Every method must be called from one thread; others may read rows
    and choose their first tokens meanwhile.

    Args:
        engine: Runs the programs.
        rows: The most rows.

    Attributes:
        seats: Those of the present rows.
        step_seconds: How long a step took lately.
    """

    def __init__(self, engine: Engine, rows: int):
        if rows < 1:
            raise ValueError(f"rows={rows} must be at least 1.")
        self._engine = engine
        self._rows = rows
        self._state: dict[str, Any] = {}
        self._on_their_way: tuple | None = None
        self.seats: list[Seat] = []
        self.step_seconds = 0.0

    @property
    def room(self) -> int:
        """How many rows can join."""
        return self._rows - len(self.seats)

    def join(self, joining: Joining) -> list[Seat]:
        """Take in rows, which then are this batch's; return their seats.

        Raises:
            ValueError: if there is no room.
        """
        self.collect()
        seats, state = joining.seats, joining.state
        rows, read = len(seats), state["mask"].shape[0]
        if rows > self.room:
            raise ValueError(f"{rows} rows cannot join: {self.room} of {self._rows} are free.")
        if self.seats:
            self._make_room(state, rows)
            taken = {seat.row for seat in self.seats}
            free = [row for row in range(self._batch) if row not in taken][:rows]
            for seat, row in zip(seats, free, strict=True):
                seat.row = row
            places = free + free[:1] * (read - rows)
            state = self._engine.programs.put_rows(self._state, state, np.array(places, "int32"))
        self._state = state
        self.seats += seats
        return seats

    def advance(self, steps: int = STEPS) -> None:
        """Begin to choose the next tokens of all rows; `collect` gives them to the seats.

        Args:
            steps: How many at most, up to `STEPS`.
        """
        self.collect()
        began = time.perf_counter()
        going = [seat for seat in self.seats if not seat.ended]
        if not going:
            return
        self._arrange(self._size(len(self.seats)), self._slots)
        batch = self._batch
        start, options, choice = _arguments(self.seats, batch, self._engine.known_ids)
        ended = np.ones(batch, bool)
        ended[[seat.row for seat in going]] = False
        state = {**self._state, "ended": ended, **_room_for_news(batch, STEPS, choice)}
        if not choice.penalises:
            state.pop("held", None)
        limit = min(steps, max(seat.remaining for seat in going))
        done, state = self._engine.programs.decode(
            state, np.int32(0), np.int32(limit), start, options, choice
        )
        self._state = _kept(state)
        self._on_their_way = going, state, done, began
        if not self._engine.programs.run_beside:
            self.collect()

    def collect(self) -> None:
        """Wait for tokens that are on their way; of a row that ends, no more are taken."""
        if self._on_their_way is None:
            return
        going, state, done, began = self._on_their_way
        self._on_their_way = None
        count = int(done)
        before = sum(len(seat.ids) for seat in going)
        _push(going, state, count)
        new_tokens = sum(len(seat.ids) for seat in going) - before
        self._engine.statistics.add_decode(new_tokens, began)
        self.step_seconds = (time.perf_counter() - began) / count

    def leave(self, seats: Sequence[Seat], keep: bool = False) -> list:
        """Let rows go; return each one's cache, which holds its tokens but the last, if kept."""
        caches = [self._row_cache(seat) if keep else None for seat in seats]
        for seat in seats:
            self.seats.remove(seat)
        if not self.seats:
            self._state = {}
        return caches

    @property
    def _batch(self):
        return self._state["mask"].shape[0]

    @property
    def _slots(self):
        return self._state["mask"].shape[1]

    def _size(self, rows):
        """Return the number of rows of a batch for at least so many."""
        size = 1
        while size < rows:
            size *= 4
        return min(size, self._rows)

    def _row_cache(self, seat):
        """Return a copy of a row's cache, less than twice as long as what is used of it."""
        used, slots = seat.start + len(seat.ids), self._slots
        while slots % 2 == 0 and slots // 2 >= used:
            slots //= 2
        return self._engine.programs.taken_row(self._state["cache"], np.int32(seat.row), slots)

    def _make_room(self, others, rows):
        """Give the batch room for more rows: the slots and whatever else these others have."""
        slots = max(self._slots, others["mask"].shape[1])
        self._arrange(self._size(len(self.seats) + rows), slots)
        if "held" in others and "held" not in self._state:
            self._state["held"] = np.zeros((self._batch, others["held"].shape[1]), bool)
        cache = zip(self._state["cache"], others["cache"], strict=True)
        self._state["cache"] = [_with_context(block, other) for block, other in cache]

    def _arrange(self, batch, slots):
        """Make a batch of so many rows and slots, the present ones first, if it is not there."""
        if self._state["mask"].shape == (batch, slots):
            return
        order = [seat.row for seat in self.seats]
        order += order[:1] * (batch - len(order))
        order = np.array(order, "int32")
        self._state = self._engine.programs.arranged(self._state, order, slots)
        for place, seat in enumerate(self.seats):
            seat.row = place


def _arguments(seats, batch, known_ids):
    """Return the start int32[batch], the options and the choice of the next tokens of rows."""
    most = bucket(max(1, *(len(seat.request.stop_ids) for seat in seats)), 4)
    start = np.ones(batch, "int32")
    options = {
        "settings": np.tile(np.array([1, 0, 0, 1, 0], "float32"), (batch, 1)),
        "stop_ids": np.full((batch, most), -1, "int32"),
        "pad_id": np.zeros(batch, "int32"),
    }
    uniform = np.zeros((batch, STEPS), "float32")
    for seat in seats:
        done, stop_ids = len(seat.ids), np.array(seat.request.stop_ids, "int32")
        start[seat.row] = seat.start + done
        options["settings"][seat.row] = seat.settings
        options["stop_ids"][seat.row] = pad_to(stop_ids, most, 0, -1)
        options["pad_id"][seat.row] = seat.request.pad_id
        uniform[seat.row] = seat.uniform[done : done + STEPS]
    samplers = [seat.request.sampler for seat in seats]
    is_greedy = all(sampler.is_greedy for sampler in samplers)
    if not is_greedy:
        options["uniform"] = uniform
    # What is compiled in is one number, whoever asks for how many.
    top_logprobs = MOST_TOP_LOGPROBS if any(s.request.top_logprobs for s in seats) else 0
    penalises = any(sampler.penalises for sampler in samplers)
    choice = Choice(is_greedy, penalises, top_logprobs=top_logprobs, known_ids=known_ids)
    return start, options, choice


def _room_for_news(batch, steps, choice):
    """Return what of a state the choices of so many steps are written to."""
    news = {
        "ids": np.zeros((batch, steps), "int32"),
        "logprobs": np.zeros((batch, steps), "float32"),
    }
    if choice.top_logprobs:
        shape = (batch, steps, choice.top_logprobs)
        news |= {"top_ids": np.zeros(shape, "int32"), "top_logprobs": np.zeros(shape, "float32")}
    return news


def _push(seats, state, count):
    """Give seats the first tokens in a state's `ids`, and what is told of them."""
    names = ("ids", "logprobs", "top_ids", "top_logprobs")
    news = {name: ops.convert_to_numpy(state[name])[:, :count] for name in names if name in state}
    for seat in seats:
        row = {name: values[seat.row].tolist() for name, values in news.items()}
        likeliest = [()] * count
        if "top_ids" in row:
            pairs = zip(row["top_ids"], row["top_logprobs"], strict=True)
            likeliest = [tuple(zip(*pair, strict=True)) for pair in pairs]
        seat.push(row["ids"], row["logprobs"], likeliest)


def _kept(state):
    """Return what of a state stays between steps."""
    return {name: state[name] for name in _KEPT if name in state}


def _with_context(block, other):
    """Return a block of a batch's cache with room for the context in a row's block."""
    if len(other) == 2 or (len(block) > 2 and block[2].shape[1] >= other[2].shape[1]):
        return block
    batch, length = len(block[0]), other[2].shape[1]
    context = block[2:] or tuple(
        ops.zeros((batch, 0, *x.shape[2:]), dtype=x.dtype) for x in other[2:]
    )
    missing = length - context[0].shape[1]
    grown = (ops.pad(x, [(0, 0), (0, missing), *[(0, 0)] * (len(x.shape) - 2)]) for x in context)
    return (*block[:2], *grown)
