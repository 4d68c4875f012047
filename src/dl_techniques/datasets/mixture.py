"""Mixtures: from which source the next sample comes, so that the shares of tokens come out right.

Drawing rows by shares gives a source of long answers far more than its share of what is learned.
Here each source's supervised tokens are counted while the run goes on, and the next sample comes
from the source that is behind. Named shares are in `mixture_recipes`.
"""

import dataclasses
import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any

from dl_techniques.datasets.mixture_recipes import check_share
from dl_techniques.datasets.permutation import BlockOrder, permuted, stream_key
from dl_techniques.utils.logger import logger

UNITS = ("answer_tokens", "rows")
# So many samples in a row without anything to learn, and the source is called broken.
_MAX_FRUITLESS = 1000


class Mixture:
    """A plan of how to mix sources, which it knows by name only.

    Args:
        shares: source -> share, of any sum; 0 leaves a source out. None: in proportion to the
            sources' lengths.
        unit: what the shares are shares of: "answer_tokens" (supervised tokens) or "rows".
        epochs: how often a source may be repeated, for all or per source, in whole or broken
            numbers; None, or a source that is not named: without limit.
        temperature: shares become `share ** (1 / temperature)`; above 1 they are more alike.
        seed: another seed gives another order.

    Raises:
        ValueError: a share is negative or not finite, none is positive, or another argument is
            out of range.
    """

    def __init__(
        self,
        shares: Mapping[str, float] | None,
        unit: str = "answer_tokens",
        epochs: Mapping[str, float | None] | float | None = None,
        temperature: float | None = None,
        seed: int = 0,
    ):
        if unit not in UNITS:
            raise ValueError(f"unit must be one of {UNITS}, got {unit!r}.")
        if temperature is not None and not 0.0 < temperature < math.inf:
            raise ValueError(f"temperature must be a finite number > 0, got {temperature}.")
        if operator.index(seed) < 0:
            raise ValueError(f"seed must be at least 0, got {seed}.")
        caps = epochs.values() if isinstance(epochs, Mapping) else [epochs]
        if not all(cap is None or 0.0 < cap < math.inf for cap in caps):
            raise ValueError(f"epochs must be finite numbers > 0 or None, got {epochs}.")
        if shares is not None:
            _targets(shares, temperature)
        self.shares = None if shares is None else dict(shares)
        self.unit = unit
        self.epochs = dict(epochs) if isinstance(epochs, Mapping) else epochs
        self.temperature = temperature
        self.seed = operator.index(seed)

    def ends(self, sources: Iterable[str]) -> bool:
        """Tells whether all sources are exhausted at some time: each with a share has a limit."""
        caps = self.epochs
        if not isinstance(caps, Mapping):
            return caps is not None
        used = sources if self.shares is None else [s for s in sources if self.shares.get(s, 0) > 0]
        return all(caps.get(source) is not None for source in used)

    def start(
        self,
        lengths: Mapping[str, int | None],
        blocks: Mapping[str, BlockOrder] | None = None,
    ) -> "MixtureRun":
        """Starts to draw from sources of the given lengths.

        Args:
            lengths: source -> number of its samples; None: a stream, which is read in its own
                order until `MixtureRun.end` is told.
            blocks: source -> the order of its samples, where not every order is as quick.

        Raises:
            ValueError: a source is empty, or the names differ from those of `shares` or `epochs`;
                or the shares are to be those of lengths that are not known.
        """
        lengths = {n: None if k is None else operator.index(k) for n, k in lengths.items()}
        empty = [name for name, length in lengths.items() if length is not None and length < 1]
        if empty:
            raise ValueError(f"Sources {empty} are empty: fill them or leave them out.")
        streams = [name for name, length in lengths.items() if length is None]
        if streams and self.shares is None:
            raise ValueError(f"The streams {streams} have no length: give the mixture shares.")
        shares = lengths if self.shares is None else self.shares
        missing, unknown = sorted(shares.keys() - lengths), sorted(lengths.keys() - shares)
        if missing or unknown:
            raise ValueError(
                f"The mixture's sources {missing} were not given, and {unknown} have no share. "
                "Name each source in both; a share of 0 leaves one out."
            )
        epochs = self.epochs
        if not isinstance(epochs, Mapping):
            epochs = dict.fromkeys(lengths, epochs)
        if epochs.keys() - lengths:
            raise ValueError(
                f"epochs names {sorted(epochs.keys() - lengths)}; the sources are "
                f"{sorted(lengths)}."
            )
        blocks = blocks or {}
        sources = [
            _Source(name, share, lengths[name], epochs.get(name), blocks.get(name))
            for name, share in _targets(shares, self.temperature).items()
        ]
        return MixtureRun(sources, self.unit, self.seed)


@dataclasses.dataclass
class _Source:
    """A source, and how far it is.

    Attributes:
        length: samples of an epoch; None: not known yet.
        epochs: how often it may be repeated; None: without limit.
        blocks: the order of samples that lie in blocks.
        streamed: whether it is read in its own order.
        drawn: samples drawn so far.
        counted: those whose tokens were counted.
        rows: those of them with anything to learn.
        tokens: supervised tokens of them.
        fruitless: samples since the last one with anything to learn.
    """

    name: str
    share: float
    length: int | None
    epochs: float | None
    blocks: BlockOrder | None
    drawn: int = 0
    counted: int = 0
    rows: int = 0
    tokens: int = 0
    fruitless: int = 0

    def __post_init__(self):
        self.streamed = self.length is None

    def index(self, position: int, key: int) -> int:
        """Returns the sample at a position of the shuffled order that a key names."""
        if self.blocks is not None:
            return self.blocks.index(position, key)
        return permuted(position, self.length, key)

    @property
    def limit(self) -> float:
        """The most samples that may be drawn."""
        if self.epochs is None or self.length is None:
            return math.inf
        return max(1, round(self.epochs * self.length))

    @property
    def epoch(self) -> float | None:
        """How many epochs are done; None where that is not known."""
        return None if self.length is None else self.drawn / self.length


_PROGRESS = ("drawn", "counted", "rows", "tokens", "fruitless")


class MixtureRun:
    """The samples of a mixture, one after the other; made by `Mixture.start`.

    The amounts that a source has given, over its share, are its clock; the source whose next
    sample is due first comes next. That sample is due at a random moment within the time for
    which it will last, judged by the mean of the source so far: sources interleave without a
    pattern, and what was misjudged is made up for. The clocks of the sources that are left
    keep their relation when one is exhausted, so its share falls to them in proportion.

    Samples may be drawn ahead of `count`. The order is a function of the calls, so a reader with
    several workers counts in the order of the draws, always the same number behind.
    """

    def __init__(self, sources: list[_Source], unit: str, seed: int):
        self._sources = {source.name: source for source in sources}
        self._unit = unit
        self._seed = seed
        self._draw_moments()

    def next(self) -> tuple[str, int, int]:
        """Draws a sample.

        Returns:
            (source, index, epoch). Each epoch of a source, from 0, has every index once, in an
            order that depends on seed, source and epoch only.

        Raises:
            StopIteration: every source is exhausted, which needs a limit of epochs for each.
        """
        open_sources = self._open_sources()
        if not open_sources:
            raise StopIteration
        typical = self._mean(self._sources.values(), default=1.0)
        source = min(open_sources, key=lambda source: self._due(source, typical))
        epoch, index = 0, source.drawn
        if source.length is not None:
            epoch, index = divmod(source.drawn, source.length)
        if not source.streamed:
            key = stream_key(self._seed, "order", source.name, epoch)
            index = source.index(index, key)
        source.drawn += 1
        self._moments[source.name] = self._moment(source)
        self._tell_if_exhausted(source)
        return source.name, index, epoch

    def end(self, source: str, length: int):
        """Tells the length of a stream, whose last draw found its end and is taken back.

        Raises:
            ValueError: the stream has no sample at all, or its length is known already.
        """
        progress = self._sources[source]
        if length < 1 or progress.length is not None:
            raise ValueError(
                f"The stream '{source}' ended after {length} samples"
                + (f", before after {progress.length}." if progress.length else ": it is empty.")
            )
        progress.length = length
        progress.drawn -= 1
        self._moments[source] = self._moment(progress)
        self._tell_if_exhausted(progress)

    def _tell_if_exhausted(self, source: _Source):
        if source.drawn >= source.limit and len(self._sources) > 1:
            rest = _normalized({s.name: s.share for s in self._open_sources()})
            shares = ", ".join(f"{name} {share:.3f}" for name, share in rest.items())
            logger.info(
                "Source %s is exhausted after %g epochs; from here on: %s",
                source.name,
                source.epoch,
                shares or "the end",
            )

    def count(self, source: str, supervised_tokens: int):
        """Counts what a drawn sample gave.

        Args:
            source: its name.
            supervised_tokens: of the whole sample; 0 if it was left out.

        Raises:
            ValueError: there is no drawn sample to count, the number is negative, or the source
                has given nothing to learn for too long.
        """
        if source not in self._sources:
            raise ValueError(f"Unknown source '{source}': expected one of {list(self._sources)}.")
        progress, tokens = self._sources[source], operator.index(supervised_tokens)
        if progress.counted == progress.drawn:
            raise ValueError(f"All {progress.drawn} drawn samples of '{source}' were counted.")
        if tokens < 0:
            raise ValueError(f"supervised_tokens must be at least 0, got {tokens}.")
        progress.counted += 1
        progress.tokens += tokens
        progress.rows += tokens > 0
        progress.fruitless = 0 if tokens else progress.fruitless + 1
        # Twice the length, as one good sample may be the first of an epoch and the last of another.
        length = _MAX_FRUITLESS if progress.length is None else progress.length
        if progress.fruitless >= min(2 * length, _MAX_FRUITLESS):
            raise ValueError(
                f"The last {progress.fruitless} samples of source '{source}' had no supervised "
                "token, so its share cannot be reached: mend the source or leave it out."
            )

    def shares(self) -> dict[str, dict[str, float]]:
        """Returns what was counted: source -> a dict of numbers.

        Its keys are `target` (the share asked for), `token_share` and `row_share` (the shares
        realised), `tokens` and `rows` (the counts behind them; a row is a sample with anything to
        learn), `drawn` (samples) and `epochs` (done, in broken numbers; None for a stream that has
        not ended yet).
        """
        tokens = sum(source.tokens for source in self._sources.values()) or 1
        rows = sum(source.rows for source in self._sources.values()) or 1
        return {
            source.name: {
                "target": source.share,
                "token_share": source.tokens / tokens,
                "row_share": source.rows / rows,
                "tokens": source.tokens,
                "rows": source.rows,
                "drawn": source.drawn,
                "epochs": source.epoch,
            }
            for source in self._sources.values()
        }

    def limits(self) -> dict[str, float]:
        """Returns source -> the most samples that are ever drawn of it; infinite if not known."""
        return {s.name: s.limit if s.share > 0 else 0 for s in self._sources.values()}

    def state(self) -> dict[str, Any]:
        """Returns all that `restore` needs, ready for JSON.

        Samples drawn but not yet counted count as drawn: count them after `restore`, too.
        """
        progress = {
            source.name: {key: getattr(source, key) for key in _PROGRESS}
            for source in self._sources.values()
        }
        for source in self._sources.values():
            if source.streamed:
                progress[source.name]["length"] = source.length
        return {"plan": self._plan(), "progress": progress}

    def restore(self, state: Mapping[str, Any]):
        """Goes on where `state` was taken: the samples that follow are the same.

        Limits of epochs may have changed in between.

        Raises:
            ValueError: the state is of another mixture; the message names what differs.
        """
        if not {"plan", "progress"} <= state.keys():
            raise ValueError(f"Expected the result of state(), got keys {sorted(state)}.")
        plan, saved = self._plan(), state["plan"]
        for key, value in plan.items():
            if saved.get(key) != value:
                raise ValueError(
                    f"The state is of another mixture: its {key} is {saved.get(key)}, here it is "
                    f"{value}. Continue with the same sources, shares and seed."
                )
        for name, source in self._sources.items():
            for key in _PROGRESS:
                setattr(source, key, int(state["progress"][name][key]))
            if source.streamed:
                source.length = state["progress"][name]["length"]
        self._draw_moments()

    def _plan(self) -> dict[str, Any]:
        sources = self._sources.values()
        return {
            "unit": self._unit,
            "seed": self._seed,
            "lengths": {s.name: None if s.streamed else s.length for s in sources},
            "shares": {source.name: source.share for source in sources},
            "blocks": {s.name: s.blocks.digest for s in sources if s.blocks is not None},
        }

    def _open_sources(self) -> list[_Source]:
        return [s for s in self._sources.values() if s.share > 0 and s.drawn < s.limit]

    def _due(self, source: _Source, typical: float) -> float:
        """Returns the time of a source's next sample, by the clock of its share."""
        mean = self._mean([source], default=typical)
        ahead = source.drawn - source.counted + self._moments[source.name]
        return (self._amount(source) + ahead * mean) / source.share

    def _amount(self, source: _Source) -> int:
        return source.tokens if self._unit == "answer_tokens" else source.rows

    def _mean(self, sources: Any, default: float) -> float:
        """Returns the mean amount of a sample, or the default while none gave anything."""
        amount = counted = 0
        for source in sources:
            amount += self._amount(source)
            counted += source.counted
        return amount / counted if amount else default

    def _draw_moments(self):
        self._moments = {name: self._moment(source) for name, source in self._sources.items()}

    def _moment(self, source: _Source) -> float:
        """Returns when within its time, in [0, 1), the next sample of a source is due."""
        return stream_key(self._seed, "moment", source.name, source.drawn) / 2**64


def _targets(shares: Mapping[str, float], temperature: float | None) -> dict[str, float]:
    for name, share in shares.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"A source's name must be a non-empty string, got {name!r}.")
        check_share(name, share)
    if not any(share > 0 for share in shares.values()):
        raise ValueError(f"At least one share must be positive, got {dict(shares)}.")
    if temperature is not None:
        # Divided by the largest first, so that no power overflows.
        largest = max(shares.values())
        shares = {name: (share / largest) ** (1 / temperature) for name, share in shares.items()}
    return _normalized(shares)


def _normalized(shares: Mapping[str, float]) -> dict[str, float]:
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}
