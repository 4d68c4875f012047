"""Run: one request on its way, whole or as a stream."""

from collections.abc import Iterator

import numpy as np

from dl_techniques.generation.engine import Decoding, Engine, Request
from dl_techniques.generation.session import Session, Turn
from dl_techniques.generation.text_stream import TextStream

# Between looks at the text for stop strings.
CHUNK = 16


class Run:
    """One request.

    Args:
        engine: What runs it.
        batch: The prompts.
        request: What to do.
        texts: Each row's text, if it is wanted or stops the row.
        by_text: Whether there are stop strings.
        session: Keeps the cache in the end.
        turn: The session's turn.
    """

    def __init__(
        self,
        engine: Engine,
        batch: dict,
        request: Request,
        texts: list[TextStream] | None = None,
        by_text: bool = False,
        session: Session | None = None,
        turn: Turn | None = None,
    ):
        earlier = [] if turn is None or turn.earlier is None else [turn.earlier]
        self._begin = lambda: engine.start(batch, request, earlier)
        self._request, self._texts, self._by_text = request, texts, by_text
        self._session, self._turn = session, turn
        self._read = 0

    def finish(self):
        """Return ids and log-probabilities, whole."""
        decoding = self._begin()
        chunk = CHUNK if self._by_text else self._request.max_new_tokens
        self._push(decoding)
        while not decoding.ended.all():
            decoding.advance(decoding.done + chunk)
            self._push(decoding)
        ids, logprobs = decoding.ids(), decoding.logprobs()
        self._keep(decoding)
        if self._by_text:
            lengths = np.array([[text.length] for text in self._texts])
            after = np.arange(ids.shape[1]) >= lengths
            ids = np.where(after, self._request.pad_id, ids).astype("int32")
            logprobs = np.where(after, 0, logprobs).astype("float32")
        return ids, logprobs

    def columns(self) -> Iterator[np.ndarray]:
        """Yield int32[B]: the next token of every row."""
        decoding = self._begin()
        for i in range(self._request.max_new_tokens):
            decoding.advance(i + 1)
            self._push(decoding)
            column = decoding.ids()[:, i]
            over = [t.length <= i for t in self._texts] if self._by_text else False
            yield np.where(over, self._request.pad_id, column).astype("int32")
            if decoding.ended.all():
                return

    def pieces(self, single: bool) -> Iterator:
        """Yield the next piece of text, of several rows a list of them; empty ones are left out."""
        decoding = self._begin()
        try:
            while True:
                pieces = self._push(decoding)
                if any(pieces):
                    yield pieces[0] if single else pieces
                if decoding.ended.all():
                    break
                decoding.advance(decoding.done + 1)
        except GeneratorExit:  # Closed early; what was read and chosen stays known.
            self._keep(decoding)
            raise
        self._keep(decoding)

    def _push(self, decoding: Decoding) -> list[str]:
        """Read the new ids; return the new pieces of text."""
        if self._texts is None:
            return []
        ids = decoding.ids()[:, self._read : decoding.done]
        pieces = [text.push(row) for text, row in zip(self._texts, ids, strict=True)]
        self._read = decoding.done
        if self._by_text:
            decoding.end(np.array([text.ended for text in self._texts]))
        if decoding.ended.all():
            pieces = [p + text.finish() for p, text in zip(pieces, self._texts, strict=True)]
        return pieces

    def _keep(self, decoding):
        if self._session is not None:
            fed = decoding.ids()[0, : decoding.done - 1]
            self._session.finish(self._turn, decoding.take_cache(), decoding.start, fed)
