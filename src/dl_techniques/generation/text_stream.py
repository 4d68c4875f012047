"""TextStream: pieces of text from the ids of one row, as they come."""

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Gives each character once it cannot change any more; joined, the pieces are the answer.

    Held back are the beginning of a character whose other bytes are still to come, blanks at the
    end (an answer has none), and the beginning of a stop string.

    Args:
        decode: ids -> text, without special tokens.
        stop_ids: The answer ends before the first of these.
        stop_strings: The answer ends before the first of these.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        stop_ids: Sequence[int] = (),
        stop_strings: Sequence[str] = (),
    ):
        self._decode = decode
        self._stop_ids = frozenset(stop_ids)
        self._stop_strings = tuple(stop_strings)
        self._ids: list[int] = []
        # Each read decodes only what came since the last but one that ended with a character.
        self._settled, self._window, self._settled_ids = "", 0, 0
        self._given = ""
        self.ended = False

    @property
    def length(self) -> int:
        """How many ids were read, the one that ended the answer included."""
        return len(self._ids)

    @property
    def text(self) -> str:
        """All pieces given so far."""
        return self._given

    def push(self, ids: Sequence[int]) -> str:
        """Read more ids; return what is certain of the text and was not given yet."""
        for token in ids:
            if self.ended:
                break
            self._ids.append(int(token))
            self.ended = int(token) in self._stop_ids
            if self._stop_strings and not self.ended:
                self.ended = self._cut(self._read()) is not None
        text = self._read()
        cut = self._cut(text)
        return self._give(self._certain(text) if cut is None else text[:cut].rstrip())

    def finish(self) -> str:
        """Return what was held back; nothing follows."""
        if self.ended:
            return ""
        self.ended = True
        return self._give(self._read().rstrip())

    def _read(self):
        ends = bool(self._ids) and self._ids[-1] in self._stop_ids
        ids = self._ids[:-1] if ends else self._ids
        known = self._decode(ids[self._window : self._settled_ids])
        text = self._settled + self._decode(ids[self._window :])[len(known) :]
        if len(ids) > self._settled_ids and not text.endswith(UNFINISHED):
            self._settled, self._window, self._settled_ids = text, self._settled_ids, len(ids)
        return text.lstrip()

    def _cut(self, text):
        found = [text.find(stop) for stop in self._stop_strings if stop in text]
        return min(found, default=None)

    def _certain(self, text):
        if self.ended:
            return text.rstrip()
        text = text.rstrip(UNFINISHED)
        for stop in self._stop_strings:
            for length in range(min(len(stop) - 1, len(text)), 0, -1):
                if text.endswith(stop[:length]):
                    text = text[:-length]
                    break
        return text.rstrip()

    def _give(self, text):
        piece = text[len(self._given) :]
        self._given += piece
        return piece
