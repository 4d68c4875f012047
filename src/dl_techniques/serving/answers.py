"""Answers: tickets of the engine for handlers that must not wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from dl_techniques.serving.engine import ServingEngine
from dl_techniques.serving.failures import RefusedError
from dl_techniques.serving.requests import ChatRequest, Event, Ticket


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
    async def ask(cls, engine: ServingEngine, requests: list[ChatRequest]) -> "Answers":
        """Submit requests, all or none.

        Raises:
            RefusedError: for a conversation that the model cannot answer.
            Exception: what else `ServingEngine.submit` raises.
        """
        answers = cls()
        try:
            await run_in_threadpool(answers._submit, engine, requests)
        except BaseException as error:
            answers.cancel()
            raise _as_refusal(error) from error
        return answers

    def _submit(self, engine, requests):
        for index, request in enumerate(requests):
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

    async def next(self, timeout: float) -> tuple[int, Event] | None:
        """Return the next event with its request's index, or None after `timeout` seconds."""
        try:
            return await asyncio.wait_for(self._events.get(), timeout)
        except TimeoutError:
            return None

    async def events(self, pause: float) -> AsyncIterator[tuple[int, Event] | None]:
        """Yield all events with their requests' indices, and None when `pause` s pass without.

        Giving up the iteration cancels the requests.

        Raises:
            Exception: the error of the first request that fails.
        """
        left = len(self.tickets)
        try:
            while left:
                news = await self.next(pause)
                if news is not None:
                    if news[1].error is not None:
                        raise _as_refusal(news[1].error)
                    left -= news[1].is_last
                yield news
        finally:
            self.cancel()

    async def whole(self, request: Request) -> list[list[Event]]:
        """Return each request's events, once all are there.

        Raises:
            ConnectionError: if the client has left meanwhile.
            Exception: the error of the first request that fails.
        """
        collected: list[list[Event]] = [[] for _ in self.tickets]
        async with aclosing(self.events(pause=0.5)) as events:
            async for news in events:
                if news is not None:
                    collected[news[0]].append(news[1])
                elif await request.is_disconnected():
                    raise ConnectionError("The client has left.")
        return collected


def _as_refusal(error):
    return RefusedError(400, str(error)) if isinstance(error, ValueError) else error
