"""Answers: tickets of the engine for handlers that must not wait."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from dl_techniques.generation.arguments import TooLongError
from dl_techniques.serving.failures import RefusedError
from dl_techniques.serving.looking import LookRequest
from dl_techniques.serving.requests import (
    ChatRequest,
    ClosedError,
    Event,
    FullError,
    Ticket,
)

Asked = ChatRequest | LookRequest
# Seconds between looks whether the client is still there.
LOOK = 0.5
# Proxies end a stream in which nothing comes for long.
LOOKS_OF_PAUSE = 30


class Answers:
    """The answers to requests that belong together.

    Attributes:
        tickets: One for each request, once `ask` is done.
    """

    def __init__(self):
        self.tickets: list[Ticket] = []
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def ask(cls, request: Request, requests: Callable[[], list[Asked]]) -> "Answers":
        """Submit requests to the app's engine, all or none, once it is ready.

        Args:
            request: Whose client asks.
            requests: Returns them; called in another thread, as images take time to decode.

        Raises:
            RefusedError: for a conversation that the model cannot answer, or if the client has
                left.
            Exception: what else `requests` and `ServingEngine.submit` raise.
        """
        answers, engine = cls(), request.app.state.engine
        await _until_ready(request)
        try:
            await run_in_threadpool(answers._submit, engine, requests)
        except BaseException as error:
            answers.cancel()
            raise _as_refusal(error) from error
        return answers

    def _submit(self, engine, requests):
        for index, request in enumerate(requests()):
            self.tickets.append(engine.submit(request, self._listener(index)))

    def _listener(self, index):
        def listen(event):
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        return listen

    def cancel(self) -> None:
        """Give all requests up; the finished ones stay as they are."""
        for ticket in self.tickets:
            ticket.cancel()

    async def events(self, request: Request) -> AsyncIterator[tuple[int, Event] | None]:
        """Yield all events with their requests' indices, and None when nothing happens for long.

        Giving up the iteration cancels the requests.

        Args:
            request: Whose client waits.

        Raises:
            RefusedError: if the client has left.
            ClosedError: if the engine is being closed.
            Exception: the error of the first request that fails.
        """
        left, quiet, looked = len(self.tickets), 0, time.monotonic()
        try:
            while left:
                news = None
                with contextlib.suppress(TimeoutError):
                    news = await asyncio.wait_for(self._events.get(), LOOK)
                if time.monotonic() - looked >= LOOK:
                    await _check_both_ends(request)
                    looked = time.monotonic()
                if news is None:
                    quiet += 1
                    if quiet % LOOKS_OF_PAUSE == 0:
                        yield None
                    continue
                index, event = news
                if event.error is not None:
                    raise _as_refusal(event.error)
                left, quiet = left - event.is_last, 0
                yield index, event
        finally:
            self.cancel()

    async def whole(self, request: Request) -> list[list[Event]]:
        """Return each request's events, once all are there.

        Raises:
            Exception: see `events`.
        """
        collected: list[list[Event]] = [[] for _ in self.tickets]
        async with contextlib.aclosing(self.events(request)) as events:
            async for news in events:
                if news is not None:
                    collected[news[0]].append(news[1])
        return collected


async def _until_ready(request):
    """Wait until the app's engine is ready; no more may do so than may wait for their turn."""
    state = request.app.state
    if state.ready.is_set():
        return
    if state.unready >= state.engine.max_waiting:
        raise FullError("Programs are being compiled, and many wait: try later.", LOOKS_OF_PAUSE)
    state.unready += 1
    try:
        while not state.ready.is_set():
            await _check_both_ends(request)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(state.ready.wait(), LOOK)
    finally:
        state.unready -= 1


async def _check_both_ends(request):
    if await request.is_disconnected():
        raise RefusedError(499, "The client has left.")
    if not request.app.state.engine.is_alive:
        raise ClosedError("The server is shutting down.")


def _as_refusal(error):
    if isinstance(error, TooLongError):
        return RefusedError(400, str(error), "context_length_exceeded", "messages")
    return RefusedError(400, str(error)) if isinstance(error, ValueError) else error
