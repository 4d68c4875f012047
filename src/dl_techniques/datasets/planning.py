"""The plan of a training stream: which documents stand in which row, decided in one order.

Nothing here looks at pixels: what a row holds depends on texts, image sizes and earlier rows alone,
so that every process of a distributed run can make the whole plan and load only its own rows.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.packed_rows import Document, PackedRow
from dl_techniques.datasets.packing import Packer
from dl_techniques.datasets.quarantine import BadSample
from dl_techniques.datasets.rows import BadSampleError, Row, RowEncoder
from dl_techniques.datasets.samples import normalize_sample
from dl_techniques.datasets.sources import EndOfStreamError
from dl_techniques.datasets.text_rows import text_rows
from dl_techniques.preprocessing.image_modes import ImageError
from dl_techniques.preprocessing.tokenizer_base import Tokenizer

# (source, index, epoch): what the mixture draws.
Drawn = tuple[str, int, int]


class Planner:
    """Draws samples, encodes them and packs them into rows.

    Args:
        sources: By name: random-access sequences, or streams, which have no length and raise
            `EndOfStreamError`; an element is a sample or a list of them.
        encoder: Cuts samples into rows of tokens and encodes them.
        tokenizer: Encodes plain texts (samples with `text`), all of which is learned.
        mixture: Decides which sample comes next.
        length: Tokens per row.
        lookahead: See `Packer`.
        count_tiles: Image source -> into how many tiles it is cut.
        max_tiles: The most tiles in a row; a document with more is quarantined.
        max_documents: The most documents in a row.

    Attributes:
        samples: How many were looked at.
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        encoder: RowEncoder,
        tokenizer: Tokenizer,
        mixture: Mixture,
        length: int,
        lookahead: int,
        count_tiles: Callable[[Any], int],
        max_tiles: int | None = None,
        max_documents: int | None = None,
    ):
        self._sources = sources
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._draws = mixture.start(
            {n: len(s) if hasattr(s, "__len__") else None for n, s in sources.items()},
            {n: s.blocks for n, s in sources.items() if getattr(s, "blocks", None) is not None},
        )
        self._packer = Packer(length, max_tiles, lookahead, max_documents)
        self._length = length
        self._count_tiles = count_tiles
        self._max_tiles = max_tiles
        self._finished: deque[PackedRow] = deque()
        self._exhausted = False
        self._bad: list[BadSample] = []
        self.samples = 0

    def next_row(self) -> PackedRow | None:
        """Return the next row, None after the last one."""
        while not self._finished and not self._exhausted:
            try:
                drawn = self._draws.next()
            except StopIteration:
                self._exhausted = True
                self._finished.extend(self._packer.flush())
                break
            self._add(drawn)
        return self._finished.popleft() if self._finished else None

    def _add(self, drawn: Drawn) -> None:
        source, index, _ = drawn
        found: Any = None
        try:
            found = self._sources[source][index]
            documents = self._encoded(found, drawn)
        except EndOfStreamError:
            self._draws.end(source, index)
            return
        except (BadSampleError, ImageError) as error:
            documents = self._bad_sample(drawn, found, error.reason, error)
        except ValueError as error:
            documents = self._bad_sample(drawn, found, "malformed sample", error)
        self.samples += 1
        self._draws.count(source, sum(document.supervised for document in documents))
        for document in documents:
            self._finished.extend(self._packer.add(document))

    def _bad_sample(self, drawn: Drawn, found: Any, reason: str, error: ValueError) -> list:
        """Note a sample that gives no document; return these: none."""
        source, index, _ = drawn
        samples = found if isinstance(found, list) else [found]
        names = [s["id"] for s in samples if isinstance(s, dict) and s.get("id") not in (None, "")]
        name = str(names[0]) if names else ""
        self._bad.append(BadSample(name, reason, str(error), source, index))
        return []

    def take_bad(self) -> list[BadSample]:
        """Return the samples that could not be used since the last call."""
        taken, self._bad = self._bad, []
        return taken

    def _encoded(self, found: Any, drawn: Drawn) -> list[Document]:
        samples = found if isinstance(found, list) else [found]
        rows = [row for number, sample in enumerate(samples) for row in self._rows(sample, number)]
        return [self._document(row, (*drawn, k)) for k, row in enumerate(rows)]

    def _rows(self, sample: Any, number: int) -> list[Row]:
        if not isinstance(sample, dict) or "text" not in sample:
            return self._encoder.rows(normalize_sample(sample, number))
        return text_rows(sample, number, self._tokenizer, self._length)

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

    def limits(self) -> dict[str, float]:
        """Return how many samples each source gives at most; see `MixtureRun.limits`."""
        return self._draws.limits()

    @property
    def utilisation(self) -> float:
        """Share of the packed rows' tokens that are not padding."""
        return self._packer.utilisation

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to go on with the next row, JSON-ready."""
        return {
            "draws": self._draws.state(),
            "packer": self._packer.state(),
            "finished": [[list(d.key) for d in row.documents] for row in self._finished],
            "exhausted": self._exhausted,
            "samples": self.samples,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a planner with the same arguments.

        Raises:
            ValueError: if the sources do not hold the documents of the state.
        """
        self._draws.restore(state["draws"])
        keys = [*state["packer"]["keys"], *(key for row in state["finished"] for key in row)]
        documents = self._documents(keys)
        self._packer.restore(state["packer"], documents.__getitem__)
        self._finished = deque(
            PackedRow(tuple(documents[tuple(key)] for key in row), self._length)
            for row in state["finished"]
        )
        self._exhausted = state["exhausted"]
        self._bad = []
        self.samples = state["samples"]

    def _documents(self, keys: Iterable[Sequence[Any]]) -> dict[tuple, Document]:
        """Encode the documents of these keys again, a stream's in the order of its rows."""
        drawn = {(source, epoch, index) for source, index, epoch, _ in keys}
        documents = {}
        for source, epoch, index in sorted(drawn):
            try:
                found = self._encoded(self._sources[source][index], (source, index, epoch))
            except (KeyError, IndexError, ValueError) as error:
                raise ValueError(
                    f"The state names row {index} of source '{source}', which does not hold it: "
                    f"resume with the data and settings of the first run ({error})."
                ) from error
            documents |= {document.key: document for document in found}
        missing = [tuple(key) for key in keys if tuple(key) not in documents]
        if missing:
            raise ValueError(
                f"The state names document {missing[0]}, which the sources do not hold: resume "
                "with the data and settings of the first run."
            )
        return documents
