"""Running: a request and what the engine's thread keeps for it."""

import time

import numpy as np

from dl_techniques.generation.engine import Request
from dl_techniques.generation.prompts import Prompt
from dl_techniques.generation.rolling_batch import Seat
from dl_techniques.generation.session import has_sessions
from dl_techniques.generation.text_stream import TextStream
from dl_techniques.serving.prefix_store import PrefixStore
from dl_techniques.serving.requests import Event, Ticket


class Running:
    """A request on its way through the engine.

    Args:
        ticket: Gets the news.
        prompt: What is read.
        positions: Those of the prompt, images included.
        new_tokens: The most new tokens.

    Attributes:
        seat: Its place in the batch, once it has joined; it keeps the tokens of one who has left.
        is_seated: Whether it has a place.
        part: What of the prompt is to be read, once it has begun.
        earlier: The cache that holds the rest, or None.
        to_read: How many positions the part takes.
        wanted: What is done for it.
    """

    def __init__(self, ticket: Ticket, prompt: Prompt, positions: int, new_tokens: int):
        self.ticket, self.request, self.positions = ticket, ticket.request, positions
        self.seat: Seat | None = None
        self.is_seated = False
        self.part = self.earlier = self.wanted = None
        self.to_read = positions
        self._prompt, self._new_tokens = prompt, new_tokens
        self._session = self._turn = self._text = None

    def begin(self, model, stop_ids, prefixes: PrefixStore) -> None:
        """Find what of the prompt is known, and what is to be read.

        Args:
            model: Answers.
            stop_ids: The ids that end its answers, unless the request says that none does.
            prefixes: May have an earlier turn of the conversation.
        """
        self.part, known, request = self._prompt, (), self.request
        stop_ids = () if request.ignore_eos else stop_ids
        if has_sessions(model):
            self._session = prefixes.take(model, request.client, self._prompt)
            self._turn = self._session.begin(model, self._prompt, self._new_tokens)
            self.part, self.earlier = self._turn.part, self._turn.earlier
            known = self._turn.known
            self.ticket.reused_tokens = self._session.reused
            self.to_read = self.positions - self._session.reused
        self.wanted = Request(
            self._new_tokens,
            request.sampler,
            np.array([request.seed]),
            stop_ids,
            model.processor.pad_token_id,
            known=tuple(known),
            top_logprobs=request.top_logprobs,
        )
        self._text = TextStream(model.processor.decode, stop_ids, request.stop_strings)

    def sit(self, seat: Seat) -> None:
        """Take a place in the batch; the first token is there."""
        self.seat, self.is_seated = seat, True

    def give_news(self) -> str | None:
        """Hand on the new tokens; return why the answer has ended, or None."""
        if self.seat is None:
            return None
        seat, text = self.seat, self._text
        before = text.length
        piece = text.push(seat.ids[before:])
        reason = None
        if text.ended:
            reason = "stop"
        elif seat.ended:
            reason, piece = "length", piece + text.finish()
        after = self.ticket.new_tokens = text.length
        if after > before:
            self.ticket.first = self.ticket.first or time.monotonic()
            told = (seat.ids, seat.logprobs, seat.top_logprobs)
            self.ticket.give(Event(piece, *(tuple(values[before:after]) for values in told)))
        return reason

    def leave(self, cache, prefixes: PrefixStore) -> None:
        """Give up its place; its cache, if there is one, is kept for the next turn."""
        seat, self.is_seated = self.seat, False
        if cache is not None:
            self._session.finish(self._turn, cache, seat.start, seat.ids[:-1])
            prefixes.put(self.request.client, self._session)
