"""ServingEngine: many requests, one model, a thread that reads and one that decodes."""

import contextlib
import math
import threading
import time
from collections import Counter

from PIL import Image

from dl_techniques.generation.arguments import (
    TooLongError,
    check_length,
    checked_stop_strings,
    row_seeds,
)
from dl_techniques.generation.prompts import gather_prompts
from dl_techniques.generation.rolling_batch import MOST_TOP_LOGPROBS, STEPS, RollingBatch
from dl_techniques.generation.sampling import GREEDY, Sampler
from dl_techniques.generation.session import has_sessions
from dl_techniques.generation.vision_cache import VisionCache, encoder_digest
from dl_techniques.serving.fair_queue import FairQueue
from dl_techniques.serving.looking import Looking, LookRequest
from dl_techniques.serving.prefix_store import PrefixStore
from dl_techniques.serving.reader import Reader
from dl_techniques.serving.reading_groups import (
    MOST_POSITIONS,
    MOST_TOGETHER,
    NUMBERS_OF_ROWS,
    fills,
    reading_groups,
)
from dl_techniques.serving.requests import (
    ChatRequest,
    ClosedError,
    Event,
    FailedError,
    FullError,
    Ticket,
    TimedOutError,
)
from dl_techniques.serving.running import Running
from dl_techniques.utils.logger import logger

# What `ServingEngine.stats` counts since the start; the other numbers are those of now.
COUNTS = (
    *("requests", "refused", "stop", "length", "cancelled", "failed"),
    *("prompt_tokens", "reused_tokens", "new_tokens", "first_token_seconds"),
)
# Steps of a large model are decoded one by one: who was read waits for the end of a turn.
TURN_SECONDS = 0.04
# Prompts of a large model are read a few at a time: first tokens wait for the end of a group.
READ_SECONDS = 3.0
# Attention over tokens is an array of all pairs of them.
MOST_LOOKED_AT = 2048


class ServingEngine:
    """Answers requests from any thread, several at once.

    An answer is the one that `model.generate` gives, whoever else asks. Those that wait are read
    together, while those that were read before are decoded.

    Args:
        model: A `VisionLanguageModel` with a processor; nobody else may use it meanwhile, nor
            change its weights.
        rows: How many requests are decoded together.
        max_waiting: How many more may wait.
        max_per_client: How many of one client may wait or run.
        max_new_tokens: The longest answer, and the length of one that names none.
        timeout: Seconds after which a request ends with an error, wherever it is.
        vision_bytes: Size of the cache of image embeddings, unless the model has one.
        prefix_bytes: Size of the cache of conversations; 0 for none.

    Attributes:
        stop_ids: The ids that end an answer.
        max_waiting: How many requests may wait.
        most_of_a_client: How many requests of one client can be taken at the same time.

    Raises:
        ValueError: for a model without a processor, or a limit out of range.
    """

    def __init__(
        self,
        model,
        rows: int = 8,
        max_waiting: int = 128,
        max_per_client: int = 64,
        max_new_tokens: int = 512,
        timeout: float = 300.0,
        vision_bytes: int = 256 * 2**20,
        prefix_bytes: int = 512 * 2**20,
    ):
        if model.processor is None:
            raise ValueError("Serving needs a tokenizer: set model.processor.")
        if max_new_tokens < 1 or not timeout > 0:
            raise ValueError(
                f"Expected max_new_tokens={max_new_tokens} >= 1 and timeout={timeout} > 0."
            )
        self.model, self.rows, self.timeout = model, rows, timeout
        self.max_new_tokens = min(max_new_tokens, model.language_decoder.max_positions - 1)
        self.stop_ids = tuple({*model.stop_ids, *model.processor.stop_ids})
        self.prefixes = PrefixStore(prefix_bytes)
        self._queue = FairQueue(max_waiting, max_per_client)
        self.max_waiting = max_waiting
        self.most_of_a_client = min(max_waiting, max_per_client)
        self._batch = RollingBatch(model.generation_engine(), rows)
        self._running: list[Running | Looking] = []  # All that do not wait any more.
        self._counts: Counter[str] = Counter()
        self._seconds = 1.0  # How long an answer took lately.
        self._closing = False
        self._condition = threading.Condition()
        self._reader = Reader(model, self._wake)
        # All arguments are checked: from here on the model is ours until `close`.
        self._made_cache = model.vision_cache is None
        if self._made_cache:
            model.vision_cache = VisionCache(vision_bytes, encoder_digest(model))
        model.generation_engine().programs.hold_weights()
        self._thread = threading.Thread(target=self._work, name="serving-engine", daemon=True)
        self._thread.start()

    def submit(self, request: ChatRequest | LookRequest, listener=None) -> Ticket:
        """Let a request wait for its turn.

        Args:
            request: What is asked.
            listener: See `Ticket`.

        Raises:
            ValueError: for a malformed conversation, or one that is too long.
            FullError: if too many requests are on their way.
            ClosedError: after `close`.
        """
        is_look = isinstance(request, LookRequest)
        running = (self._looking if is_look else self._answering)(request, listener)
        ticket = running.ticket
        with self._condition:
            if self._closing:
                raise ClosedError("The engine is closed.")
            try:
                self._queue.put(running, self._retry_after())
            except FullError:
                self._counts["refused"] += 1
                raise
            self._counts["requests"] += 1
            self._counts["prompt_tokens"] += ticket.prompt_tokens
            self._condition.notify()
        return ticket

    def warm_up(self) -> None:
        """Begin to answer made-up questions, alone and together, so that programs are compiled.

        They are not counted.
        """
        text = {"role": "user", "content": "?"}
        question = {**text, "image": Image.new("RGB", (64, 64))}
        next_turn = [question, {"role": "assistant", "content": "."}, text]
        most = min(self.rows, self.max_waiting)
        filled = {min(n, most) for n in NUMBERS_OF_ROWS if fills(min(n, most), n)}
        together = [[[question]] * count for count in sorted({most, *filled})]
        timeout, self.timeout = self.timeout, math.inf  # To compile may take longer.
        try:
            for sampler in (GREEDY, Sampler(top_k=0)):
                for conversations in ([[text]], *together, [next_turn]):
                    with contextlib.suppress(TooLongError):  # Small models have no such questions.
                        self._answer_together(conversations, sampler)
        finally:
            self.timeout = timeout
        with self._condition:
            self._counts.clear()

    def _answer_together(self, conversations, sampler):
        """Begin to answer questions of which all wait at the same time."""
        tickets = []
        with self._condition:
            for number, messages in enumerate(conversations):
                options = {"ignore_eos": True, "client": f"warm-up {number}"}
                tickets.append(self.submit(ChatRequest(messages, None, sampler, **options)))
        events = [iter(ticket) for ticket in tickets]
        for news in events:
            next(news)
        for ticket, news in zip(tickets, events, strict=True):
            ticket.cancel()
            list(news)  # Up to its end, when its place is free again.

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and not self._closing

    def stats(self) -> dict[str, float]:
        """Return what is on its way and kept, and `COUNTS`: answers by their end, tokens, seconds.

        `first_token_seconds` is the sum of the times to the first tokens of all answers.
        """
        with self._condition:
            return {
                "waiting": len(self._queue),
                "running": len(self._running),
                "rows": self.rows,
                **{name: self._counts[name] for name in COUNTS},
                "conversations": len(self.prefixes),
                "conversation_bytes": self.prefixes.nbytes,
            }

    def close(self) -> None:
        """End all requests with an error, and the thread."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()
        self.model.generation_engine().programs.hold_weights(False)
        if self._made_cache:  # It would not notice other weights.
            self.model.vision_cache = None

    def _answering(self, request, listener):
        prompts = self._prompts(request.messages)
        new_tokens = self._new_tokens(request, prompts.positions)
        row_seeds(request.seed, 1)
        if not 0 <= request.top_logprobs <= MOST_TOP_LOGPROBS:
            raise ValueError(
                f"top_logprobs={request.top_logprobs} must lie in [0, {MOST_TOP_LOGPROBS}]."
            )
        checked_stop_strings(request.stop_strings)
        ticket = Ticket(request, len(prompts.read[0].ids), listener)
        return Running(ticket, prompts.read[0], prompts.positions, new_tokens)

    def _looking(self, request, listener):
        *messages, last = request.messages
        answer = last.get("content")
        if last.get("role") != "assistant" or not isinstance(answer, str) or not answer:
            raise ValueError("The last message must be the assistant's answer, a text.")
        prompts = self._prompts(messages)
        answer_ids = self.model.processor.encode_answer(answer)
        while answer_ids[-1] in self.stop_ids:
            answer_ids.pop()
        tokens = prompts.positions + len(answer_ids)
        if not prompts.read[0].images or tokens > MOST_LOOKED_AT:
            raise ValueError(
                f"A conversation of {tokens} tokens with {len(prompts.read[0].images)} images "
                f"cannot be looked at: at most {MOST_LOOKED_AT} tokens, at least one image."
            )
        check_length(self.model, prompts.positions, len(answer_ids), "answer tokens")
        ticket = Ticket(request, len(prompts.read[0].ids) + len(answer_ids), listener)
        return Looking(ticket, prompts.read[0], answer_ids)

    def _prompts(self, messages):
        prompts = gather_prompts(self.model, messages)
        if not prompts.single or prompts.read is None:
            raise ValueError("A request is one conversation: a list of messages.")
        return prompts

    def _new_tokens(self, request, positions):
        wanted = request.max_new_tokens
        if wanted is None:
            room = self.model.language_decoder.max_positions - positions
            wanted = max(1, min(self.max_new_tokens, room))
        check_length(self.model, positions, wanted, "max_new_tokens")
        if wanted > self.max_new_tokens:
            raise ValueError(
                f"max_new_tokens={wanted} is more than the {self.max_new_tokens} allowed here."
            )
        return wanted

    def _retry_after(self):
        return max(1, min(60, math.ceil(self._seconds * (1 + len(self._queue)) / self.rows)))

    def _wake(self):
        with self._condition:
            self._condition.notify()

    def _work(self):
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closing or self._has_work)
            if self._closing:
                break
            try:
                self._turn()
            except Exception:
                # Programs use up the caches they were given: nothing of the batch can be trusted.
                logger.exception("A step of decoding failed.")
                self._batch = RollingBatch(self.model.generation_engine(), self.rows)
                self._end_all(FailedError("The answer could not be computed."))
        self._end_all(ClosedError("The server is shutting down."))
        self._reader.close()

    @property
    def _has_work(self):
        return self._batch.seats or self._reader.has_read or len(self._queue) and self._room

    @property
    def _room(self):
        """How many requests can begin: none while others wait for the reader.

        While it has work, those who wait begin once they are as many: large groups take less time.
        """
        if self._reader.is_behind or self._reader.rows > len(self._queue):
            return 0
        return min(self._batch.room - self._reader.rows, MOST_TOGETHER)

    def _turn(self):
        """Start the next steps as soon as the last ones are done; do all else meanwhile."""
        self._batch.collect()
        self._leave([r for r in self._running if r.is_seated and r.seat.ended])
        self._take_read()
        steps = TURN_SECONDS / max(self._batch.step_seconds, 1e-9)
        self._batch.advance(max(1, min(STEPS, int(steps))))
        reasons = {running: running.give_news() for running in self._running}
        for running, reason in reasons.items():
            if reason is not None:
                self._end(running, Event(finish_reason=reason))
        self._drop()
        self._begin_waiting()

    def _begin_waiting(self):
        """Let waiting requests be read."""
        joining, tokens = [], 0
        most_read = min(MOST_POSITIONS, READ_SECONDS / max(self._reader.position_seconds, 1e-9))
        with self._condition:
            most = min(len(self._queue), self._room)
            while len(joining) < most and tokens < most_read:
                joining.append(self._queue.pop())
                tokens += joining[-1].ticket.prompt_tokens
        self._running += joining
        begun = [running for running in joining if self._begin(running)]
        groups = reading_groups(begun, self.model.language_decoder.max_positions, most_read)
        # To hand it over takes time.
        nobody_waits = len(groups) == 1 and not self._batch.seats and not self._reader.rows
        for group in groups:
            self._reader.read(group, beside=not nobody_waits)

    def _begin(self, running) -> bool:
        """Begin a request; tell whether there is something to read for it."""
        try:
            if isinstance(running, Looking):
                running.begin(self.model)
                self._end(running, Event(finish_reason="stop"))
                return False
            running.begin(self.model, self.stop_ids, self.prefixes)
        except Exception as error:
            self._fail(running, error)
            return False
        return True

    def _take_read(self):
        """Let requests that were read join the batch."""
        for group, joining in self._reader.take():
            staying = [running for running in group if running in self._running]
            if isinstance(joining, Exception):
                for running in staying:
                    self._fail(running, joining)
                continue
            seats = dict(zip(group, self._batch.join(joining), strict=True))
            for running in staying:
                running.sit(seats.pop(running))
            self._batch.leave(list(seats.values()))  # Of those that were dropped meanwhile.

    def _fail(self, running, error):
        if not isinstance(error, ValueError):
            logger.error("A request could not be read.", exc_info=error)
            error = FailedError("The request could not be read.")
        self._end(running, Event(error=error))

    def _drop(self):
        now = time.monotonic()

        def is_over(running):
            return running.ticket.cancelled or now - running.ticket.began > self.timeout

        with self._condition:
            waiting = self._queue.remove_if(is_over)
        for running in waiting + [running for running in self._running if is_over(running)]:
            event = Event(finish_reason="cancelled")
            if not running.ticket.cancelled:
                event = Event(error=TimedOutError(f"No answer within {self.timeout:g} s."))
            self._end(running, event)

    def _leave(self, ended):
        """Let requests leave the batch, if they are in it; their conversations are kept."""
        seated = [running for running in ended if running.is_seated]
        seats = [running.seat for running in seated]
        caches = self._batch.leave(seats, keep=has_sessions(self.model)) if seats else []
        for running, cache in zip(seated, caches, strict=True):
            running.leave(cache, self.prefixes)

    def _end(self, running, event):
        """Hand on the last event of a request."""
        self._leave([running])
        ticket = running.ticket
        with self._condition:
            if running in self._running:
                self._running.remove(running)
                self._queue.finish(running)
            self._counts[event.finish_reason or "failed"] += 1
            self._counts["reused_tokens"] += ticket.reused_tokens
            self._counts["new_tokens"] += ticket.new_tokens
            if ticket.first is not None:
                self._counts["first_token_seconds"] += ticket.first - ticket.began
            if event.finish_reason in ("stop", "length"):
                self._seconds += 0.2 * (time.monotonic() - ticket.began - self._seconds)
        ticket.give(event)

    def _end_all(self, error):
        with self._condition:
            waiting = self._queue.remove_if(lambda running: True)
        for running in waiting + self._running[:]:
            running.is_seated = False
            self._end(running, Event(error=error))
