"""What is asked of the engine, and how its answer comes back."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dl_techniques.generation.sampling import GREEDY, Sampler


class FullError(RuntimeError):
    """The engine takes no more requests, of this client or of all, for now.

    Attributes:
        retry_after: Seconds after which it is worth another try.
    """

    def __init__(self, message: str, retry_after: int):
        super().__init__(message)
        self.retry_after = retry_after


class TimedOutError(RuntimeError):
    """A request took longer than it may."""


class ClosedError(RuntimeError):
    """The engine was closed."""


class FailedError(RuntimeError):
    """Something went wrong that is not the request's fault; the log has the reason."""


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to answer.

    Attributes:
        messages: See `VisionLanguageModel.generate`.
        max_new_tokens: The most new tokens; None: as many as the engine allows.
        sampler: How tokens are chosen.
        seed: What is drawn depends on it alone.
        stop_strings: The answer ends before the first of these.
        ignore_eos: Do not end with an end token, so that answers have a known length.
        top_logprobs: How many of the likeliest ids are told beside each token, at most 20.
        client: Whose it is: clients take turns, and share no cache of conversations.
    """

    messages: list[dict[str, Any]]
    max_new_tokens: int | None = None
    sampler: Sampler = GREEDY
    seed: int = 0
    stop_strings: tuple[str, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int = 0
    client: str = ""


@dataclass(frozen=True)
class Event:
    """News of an answer.

    Attributes:
        text: The next piece.
        ids, logprobs: The new tokens since the last event; their text may come later.
        top_logprobs: For each of them the likeliest ids and their log-probabilities.
        finish_reason: "stop" (by an end token or a stop string), "length" or "cancelled" in the
            last event, else None.
        found: What a request for something else than an answer finds.
        error: Why there is no answer, in the last event.
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    finish_reason: str | None = None
    found: Any = None
    error: Exception | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.finish_reason is not None or self.error is not None


class Ticket:
    """One request on its way.

    Without a listener iterate over it for its events, or ask for its `result`; either way an error
    is raised, and giving up the iteration cancels the request.

    Args:
        request: What was asked.
        prompt_tokens: Length of the prompt.
        listener: Called with each event, in the engine's thread; it must return at once.

    Attributes:
        reused_tokens: How much of the prompt was known from an earlier turn.
        new_tokens: How many tokens the answer has so far.
        began, first, ended: Times (`time.monotonic`) of the request, its first token and its end.
        cancelled: Whether nobody waits for it any more.
    """

    def __init__(
        self,
        request: ChatRequest,
        prompt_tokens: int,
        listener: Callable[[Event], None] | None = None,
    ):
        self.request = request
        self.prompt_tokens = prompt_tokens
        self.reused_tokens = self.new_tokens = 0
        self.began, self.first, self.ended = time.monotonic(), None, None
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._listener = listener or self._events.put
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Give the request up; its last event follows soon."""
        self._cancelled.set()

    def give(self, event: Event) -> None:
        """Hand on an event; only the engine calls this."""
        if event.is_last:
            self.ended = time.monotonic()
        self._listener(event)

    def __iter__(self) -> Iterator[Event]:
        try:
            while True:
                event = self._events.get()
                if event.error is not None:
                    raise event.error
                yield event
                if event.is_last:
                    return
        finally:
            self.cancel()

    def result(self) -> str:
        """Wait for the whole answer and return its text."""
        return "".join(event.text for event in self)
