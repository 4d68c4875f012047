"""Packer: documents to rows of one length, as they come."""

from collections.abc import Callable
from typing import Any

from dl_techniques.datasets.packed_rows import Document, Key, PackedRow


class Packer:
    """Fills rows with whole documents from a stream.

    `lookahead` documents wait. Each new row takes the oldest of them and, of all the sets of
    others that fit beside it, one that fills the row best; of several, one of older documents. So
    no document is passed over by more than `lookahead` rows, the order of the stream is nearly
    kept, long documents come neither first nor last, and the same documents give the same rows.

    Best fit into open rows, the usual way, leaves more padding where lengths differ little, and
    holds all documents of its open rows back.

    Args:
        length: S, the length of a row in tokens.
        max_tiles: the most image tiles in a row; None: any number.
        lookahead: how many documents wait. More leave less padding and reorder more.
        max_documents: the most documents in a row; None: any number.

    Attributes:
        emitted_rows: how many rows were made.
        emitted_tokens: how many of their tokens are not padding.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(
        self,
        length: int,
        max_tiles: int | None = None,
        lookahead: int = 64,
        max_documents: int | None = None,
    ):
        self._limits = {
            "length": length,
            "max_tiles": max_tiles,
            "lookahead": lookahead,
            "max_documents": max_documents,
        }
        for name, limit in self._limits.items():
            if limit is not None and limit < 1:
                raise ValueError(f"{name} must be at least 1, got {limit}.")
        # Counting fewer things is faster, and what then fills a row best and keeps to all limits
        # is also the best that does.
        counted = dict.fromkeys((t, d) for d in (None, max_documents) for t in (None, max_tiles))
        self._searches = [_SubsetSums(length, *limits) for limits in counted]
        self._pending: list[Document] = []  # Oldest first.
        self.emitted_rows = 0
        self.emitted_tokens = 0

    @property
    def utilisation(self) -> float:
        """Share of the rows' tokens that are not padding; 0 before the first row."""
        return self.emitted_tokens / max(1, self.emitted_rows * self._limits["length"])

    def add(self, document: Document) -> list[PackedRow]:
        """Takes a document.

        Returns:
            The rows that are finished now: none or one.

        Raises:
            ValueError: no row can hold the document; nothing is ever cut.
        """
        self._check(document)
        self._pending.append(document)
        return [self._next_row()] if len(self._pending) == self._limits["lookahead"] else []

    def flush(self) -> list[PackedRow]:
        """Makes rows of all documents that wait."""
        rows = []
        while self._pending:
            rows.append(self._next_row())
        return rows

    def state(self) -> dict[str, Any]:
        """Returns what `restore` needs to go on from here, JSON-ready."""
        return {
            "limits": dict(self._limits),
            "keys": [list(document.key) for document in self._pending],
            "lengths": [len(document.ids) for document in self._pending],
            "emitted_rows": self.emitted_rows,
            "emitted_tokens": self.emitted_tokens,
        }

    def restore(self, state: dict[str, Any], fetch: Callable[[Key], Document]) -> None:
        """Replaces everything by a state: the rows from here on are those it would have given.

        Args:
            state: of a packer with the same limits.
            fetch: key -> the document as it was.

        Raises:
            ValueError: another packer's state, or a document that is no longer the same. The
                packer is then as it was before.
        """
        if state.keys() != self.state().keys() or state["limits"] != self._limits:
            raise ValueError(
                f"The state is not that of a packer with {self._limits}; it has "
                f"{state.get('limits', sorted(state))}."
            )
        saved = zip(state["keys"], state["lengths"], strict=True)
        self._pending = [_fetched(fetch, tuple(key), length) for key, length in saved]
        self.emitted_rows = state["emitted_rows"]
        self.emitted_tokens = state["emitted_tokens"]

    def _check(self, document: Document):
        length, max_tiles = self._limits["length"], self._limits["max_tiles"]
        if len(document.ids) > length:
            raise ValueError(
                f"Document {document.key} has {len(document.ids)} tokens, more than a row's "
                f"length={length}. Cut it before, or pack longer rows."
            )
        if max_tiles is not None and document.tiles > max_tiles:
            raise ValueError(
                f"Document {document.key} has {document.tiles} tiles, more than "
                f"max_tiles={max_tiles}. Cut it before, or raise max_tiles."
            )

    def _next_row(self) -> PackedRow:
        for search in self._searches:
            taken = search.best(self._pending)
            documents = [d for d, take in zip(self._pending, taken, strict=True) if take]
            if self._keeps_limits(documents):
                break
        self._pending = [d for d, take in zip(self._pending, taken, strict=True) if not take]
        row = PackedRow(tuple(documents), self._limits["length"])
        self.emitted_rows += 1
        self.emitted_tokens += row.tokens
        return row

    def _keeps_limits(self, documents: list[Document]) -> bool:
        max_tiles, max_documents = self._limits["max_tiles"], self._limits["max_documents"]
        tiles = sum(document.tiles for document in documents)
        return (max_tiles is None or tiles <= max_tiles) and (
            max_documents is None or len(documents) <= max_documents
        )


class _SubsetSums:
    """Finds sets of documents that fill a row best, under all limits at once.

    A set of sums is an integer: bit `tokens + tiles * a + documents * b` says that some set of
    documents has these sums. Adding a document to all sets is then one shift. `a` and `b` leave
    room for one document too many, so that a sum beyond a limit meets no other sum before
    `_allowed` removes it. What has no limit is not counted.
    """

    def __init__(self, length: int, max_tiles: int | None, max_documents: int | None):
        self._tile_step = 0 if max_tiles is None else 2 * length + 1
        tile_sums = range((max_tiles or 0) + 1)
        next_step = (2 * length + 1) * (2 * (max_tiles or 0) + 1)
        self._document_step = 0 if max_documents is None else next_step
        document_sums = range((max_documents or 0) + 1)
        self._planes = [
            k * self._document_step + t * self._tile_step for k in document_sums for t in tile_sums
        ]
        self._tokens = (1 << (length + 1)) - 1
        self._allowed = sum(self._tokens << plane for plane in self._planes)
        self._no_tokens = sum(1 << plane for plane in self._planes)

    def best(self, documents: list[Document]) -> list[bool]:
        """Returns which to take: the first, and those that fill its row best."""
        steps = [len(d.ids) + d.tiles * self._tile_step + self._document_step for d in documents]
        sums = 1 << steps[0]
        before = []  # The sums of sets of the documents before each.
        for step in steps[1:]:
            before.append(sums)
            sums |= sums << step & self._allowed
        most_tokens = 0
        for plane in self._planes:
            most_tokens |= sums >> plane & self._tokens
        goals = sums & self._no_tokens << (most_tokens.bit_length() - 1)
        taken = []
        for step, sums in zip(reversed(steps[1:]), reversed(before), strict=True):
            # Newer documents wait, wherever older ones alone reach a goal.
            taken.append(not goals & sums)
            goals = goals >> step if taken[-1] else goals & sums
        return [True, *reversed(taken)]


def _fetched(fetch: Callable[[Key], Document], key: Key, length: int) -> Document:
    document = fetch(key)
    if document.key != key or len(document.ids) != length:
        raise ValueError(
            f"Document {key} had {length} tokens when the state was saved; now it is "
            f"{document.key} with {len(document.ids)}. Restore with the same data and tokenizer."
        )
    return document
