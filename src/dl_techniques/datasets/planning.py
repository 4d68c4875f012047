"""The plan of a training stream: which documents stand in which row, decided in one order.

Nothing here looks at pixels: what a row holds depends on texts, image sizes and earlier rows alone,
so that every process of a distributed run can make the whole plan and load only its own rows.
"""

import functools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.packed_rows import Document, PackedRow
from dl_techniques.datasets.packing import Packer
from dl_techniques.datasets.quarantine import Quarantine
from dl_techniques.datasets.rows import BadSampleError, Row, RowEncoder
from dl_techniques.datasets.samples import normalize_sample
from dl_techniques.preprocessing.image_modes import ImageError
from dl_techniques.preprocessing.tokenizer_base import Tokenizer


class Planner:
    """Draws samples, encodes them and packs them into rows.

    Args:
        sources: Random-access sequences by name; an element is a sample or a list of them.
        encoder: Cuts samples into rows of tokens and encodes them.
        tokenizer: Encodes plain texts (samples with `text`), all of which is learned.
        mixture: Decides which sample comes next.
        length: Tokens per row.
        lookahead: See `Packer`.
        count_tiles: Image source -> into how many tiles it is cut.
        max_tiles: The most tiles in a row; a document with more is quarantined.

    Attributes:
        report: The samples that could not be used, and why.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Any]],
        encoder: RowEncoder,
        tokenizer: Tokenizer,
        mixture: Mixture,
        length: int,
        lookahead: int,
        count_tiles: Callable[[Any], int],
        max_tiles: int | None = None,
    ):
        self._sources = sources
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._draws = mixture.start({name: len(source) for name, source in sources.items()})
        self._packer = Packer(length, max_tiles, lookahead)
        self._length = length
        self._count_tiles = count_tiles
        self._max_tiles = max_tiles
        self._finished: deque[PackedRow] = deque()
        self._exhausted = False
        self.report = Quarantine()

    def next_row(self) -> PackedRow | None:
        """Return the next row, None after the last one."""
        while not self._finished and not self._exhausted:
            try:
                source, index, epoch = self._draws.next()
            except StopIteration:
                self._exhausted = True
                self._finished.extend(self._packer.flush())
                break
            documents = self._documents(source, index, epoch)
            supervised = sum(document.supervised for document in documents)
            self._draws.count(source, supervised)
            for document in documents:
                self._finished.extend(self._packer.add(document))
        return self._finished.popleft() if self._finished else None

    def _documents(self, source: str, index: int, epoch: int) -> list[Document]:
        """Return the documents of a sample; a bad one is reported and has none."""
        self.report.total += 1
        try:
            return self._encoded(source, index, epoch)
        except (BadSampleError, ImageError) as error:
            self.report.add(f"{source}/{index}", error.reason, str(error))
        except ValueError as error:
            self.report.add(f"{source}/{index}", "malformed sample", str(error))
        return []

    def _encoded(self, source: str, index: int, epoch: int) -> list[Document]:
        found = self._sources[source][index]
        samples = found if isinstance(found, list) else [found]
        rows = [row for number, sample in enumerate(samples) for row in self._rows(sample, number)]
        return [self._document(row, (source, index, epoch, k)) for k, row in enumerate(rows)]

    def _rows(self, sample: Any, number: int) -> list[Row]:
        if not isinstance(sample, dict) or "text" not in sample:
            return self._encoder.rows(normalize_sample(sample, number))
        ids = self._tokenizer.encode(sample["text"])
        if not ids:
            raise BadSampleError("empty text", "The text has no tokens.")
        if self._tokenizer.eos_id is not None:
            ids.append(self._tokenizer.eos_id)
        tokens = np.array(ids, np.int32)
        parts = [tokens[i : i + self._length] for i in range(0, len(tokens), self._length)]
        name, source = str(sample.get("id", number)), str(sample.get("source", ""))
        # A part of one token would have nothing to learn: nothing comes before its first.
        return [Row(name, source, [], [(part, part)], []) for part in parts if len(part) > 1]

    def _document(self, row: Row, key: tuple) -> Document:
        tiles = sum(self._count_tiles(image) for image in row.images)
        if self._max_tiles is not None and tiles > self._max_tiles:
            raise BadSampleError(
                "too many tiles",
                f"{len(row.images)} images are {tiles} tiles, more than max_tiles="
                f"{self._max_tiles}: raise it or make the images smaller.",
            )
        return Document.from_row(row, tiles, key)

    def shares(self) -> dict[str, dict[str, float]]:
        """Return the realised shares of each source; see `MixtureRun.shares`."""
        return self._draws.shares()

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to go on with the next row, JSON-ready."""
        return {
            "draws": self._draws.state(),
            "packer": self._packer.state(),
            "finished": [[list(d.key) for d in row.documents] for row in self._finished],
            "exhausted": self._exhausted,
            "samples": self.report.total,
            "bad": [list(item) for item in self.report.items],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a planner with the same arguments.

        Raises:
            ValueError: if the sources do not hold the documents of the state.
        """
        self._draws.restore(state["draws"])
        fetch = functools.partial(self._fetch, {})
        self._packer.restore(state["packer"], fetch)
        self._finished = deque(
            PackedRow(tuple(fetch(key) for key in keys), self._length) for keys in state["finished"]
        )
        self._exhausted = state["exhausted"]
        self.report = Quarantine()
        self.report.total = state["samples"]
        for item in state["bad"]:
            self.report.add(*item)

    def _fetch(self, known: dict[tuple, list[Document]], key: Sequence[Any]) -> Document:
        """Encode a document again; `known` keeps what was encoded with it."""
        *drawn, part = key
        try:
            if tuple(drawn) not in known:
                known[tuple(drawn)] = self._encoded(*drawn)
            return known[tuple(drawn)][part]
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"The state names document {list(key)}, which the sources do not hold: resume with "
                f"the data and settings of the first run ({error})."
            ) from error
