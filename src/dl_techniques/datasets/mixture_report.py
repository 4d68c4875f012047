"""What a mixture gives: the shares that are realised, drawn by answer tokens and by rows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from dl_techniques.datasets.inspection import Inspection
from dl_techniques.datasets.mixture import Mixture, MixtureRun
from dl_techniques.datasets.sample_reader import SampleFacts, SampleReader, Shown, fault
from dl_techniques.datasets.sources import EndOfStreamError

if TYPE_CHECKING:
    from dl_techniques.datasets.vqa_dataset import VQADataProcessor

# One sample with more than this of all tokens makes its source's share a matter of chance.
_LARGE = 0.05


@dataclasses.dataclass
class MixtureCount:
    """What was drawn from a mixture.

    Attributes:
        unit: What the shares are shares of; see `Mixture`.
        shares: Source -> numbers; see `MixtureRun.shares`.
        drops: Samples that were drawn and give nothing, by (source, reason).
        largest: Source -> the most learned tokens of one sample.
        found: Lengths and sizes of all that was drawn, repeats included.
    """

    unit: str
    shares: dict[str, dict[str, float]]
    drops: Counter[tuple[str, str]]
    largest: Counter[str]
    found: Inspection

    @property
    def tokens(self) -> int:
        """Learned tokens of all samples."""
        return sum(int(numbers["tokens"]) for numbers in self.shares.values())

    @property
    def drawn(self) -> int:
        """How many samples were drawn."""
        return sum(int(numbers["drawn"]) for numbers in self.shares.values())


class _Drop(NamedTuple):
    reason: str
    message: str


class MixtureSampler:
    """Draws from mixtures of some sources as a training run would, without decoding a pixel.

    Each row is read once, however often and for whichever mixture it is drawn. A row of which one
    sample has a fault, or an image's header, gives nothing.

    Args:
        sources: By name: random-access sequences, or streams; see `Planner`.
        processor: Encodes the samples.
        shown: How many samples of each source are kept for a page.

    Attributes:
        shown: Source -> (sample, its rows) of the first good ones.
    """

    def __init__(self, sources: Mapping[str, Any], processor: VQADataProcessor, shown: int = 6):
        self.shown: dict[str, list[Shown]] = {name: [] for name in sources}
        self._sources = sources
        self._reader = SampleReader(processor)
        self._most_shown = shown
        self._known: dict[tuple[str, int], SampleFacts | _Drop] = {}

    def draw(self, mixture: Mixture, tokens: int) -> MixtureCount:
        """Draw samples.

        Args:
            mixture: Which source comes next.
            tokens: Where to stop: after so many learned tokens, or where the mixture ends.

        Raises:
            ValueError: The mixture is one of other sources, or a source gives nothing to learn.
        """
        if tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {tokens}.")
        sources = self._sources.items()
        run = mixture.start(
            {n: len(s) if hasattr(s, "__len__") else None for n, s in sources},
            {n: s.blocks for n, s in sources if getattr(s, "blocks", None) is not None},
        )
        count = MixtureCount(mixture.unit, {}, Counter(), Counter(), Inspection())
        learned = 0
        while learned < tokens:
            try:
                source, index, _ = run.next()
            except StopIteration:
                break
            learned += self._count(run, count, source, index)
        count.shares = run.shares()
        return count

    def _count(self, run: MixtureRun, count: MixtureCount, source: str, index: int) -> int:
        """Count a drawn row; return how many tokens are learned."""
        try:
            facts = self._facts(source, index)
        except EndOfStreamError:
            run.end(source, index)
            return 0
        if isinstance(facts, _Drop):
            count.drops[source, facts.reason] += 1
            self._count_drop(run, count, source, facts)
            return 0
        learned = sum(facts.answer_tokens)
        count.found.add(source, facts)
        count.largest[source] = max(count.largest[source], learned)
        run.count(source, learned)
        return learned

    def _count_drop(self, run: MixtureRun, count: MixtureCount, source: str, drop: _Drop) -> None:
        try:
            run.count(source, 0)
        except ValueError as error:
            reasons = ", ".join(
                f"{reason}: {number}"
                for (name, reason), number in count.drops.items()
                if name == source
            )
            raise ValueError(f"{error} Left out: {reasons}. The last: {drop.message}") from None

    def _facts(self, source: str, index: int) -> SampleFacts | _Drop:
        if (source, index) not in self._known:
            self._known[source, index] = self._read(source, index)
        return self._known[source, index]

    def _read(self, source: str, index: int) -> SampleFacts | _Drop:
        try:
            found = self._sources[source][index]
            samples = found if isinstance(found, list) else [found]
            looked = [self._reader.read(sample, number) for number, sample in enumerate(samples)]
        except ValueError as error:
            return _Drop(*fault(error))
        facts = sum((facts for _, facts in looked), SampleFacts())
        if not sum(facts.answer_tokens):
            return _Drop("nothing to learn", f"row {index} of {source} has no learned token.")
        free = self._most_shown - len(self.shown[source])
        self.shown[source] += [shown for shown, _ in looked][:free]
        return facts


def mixture_text(by_tokens: MixtureCount, by_rows: MixtureCount) -> str:
    """Return a table of shares, the drops and what to beware of, as lines for a terminal.

    Args:
        by_tokens: What was drawn with unit="answer_tokens".
        by_rows: The same with unit="rows".
    """
    lines = [*_table(by_tokens, by_rows), "", *_drops(by_tokens)]
    return "\n".join(lines + _warnings(by_tokens))


def _table(by_tokens: MixtureCount, by_rows: MixtureCount) -> list[str]:
    width = max(6, *map(len, by_tokens.shares))
    columns = "  tokens    rows    mean   samples  epochs"
    titles = " |".join(f"{title:^{len(columns)}}" for title in ("by answer tokens", "by rows"))
    lines = [
        f"{'':{width}}  {'':>7} |{titles}".rstrip(),
        f"{'source':{width}}  {'target':>7} |{columns} |{columns}",
    ]
    for name, numbers in by_tokens.shares.items():
        cells = f"{_cells(numbers)} |{_cells(by_rows.shares[name])}"
        lines.append(f"{name:{width}}  {numbers['target']:>7.1%} |{cells}")
    lines += [
        "tokens, rows: shares of the answer tokens, and of the samples with any; mean: answer "
        "tokens of these.",
        f"Drawn: {by_tokens.tokens:,} answer tokens in {by_tokens.drawn:,} samples; by rows "
        f"{by_rows.tokens:,} in {by_rows.drawn:,}.",
    ]
    return lines


def _cells(numbers: Mapping[str, float]) -> str:
    mean = numbers["tokens"] / numbers["rows"] if numbers["rows"] else 0.0
    epochs = "?" if numbers["epochs"] is None else f"{numbers['epochs']:,.2f}"
    return (
        f"{numbers['token_share']:>8.1%}{numbers['row_share']:>8.1%}{mean:>8,.1f}"
        f"{numbers['drawn']:>10,}{epochs:>8}"
    )


def _drops(count: MixtureCount) -> list[str]:
    lines = [f"{count.drops.total():,} of {count.drawn:,} samples were left out"]
    width = max((len(source) for source, _ in count.drops), default=0)
    for (source, reason), number in count.drops.most_common():
        lines.append(f"  {source:{width}}  {reason:24s} {number:>9,}")
    return lines


def _warnings(count: MixtureCount) -> list[str]:
    return [
        f"Beware: one sample of {source} has {largest:,} answer tokens, "
        f"{largest / count.tokens:.0%} of all that were drawn, so the shares say little. Cut its "
        "texts, or draw more tokens."
        for source, largest in count.largest.items()
        if largest > _LARGE * count.tokens
    ]
