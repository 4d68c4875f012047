"""How sure a figure is: bootstrap intervals, and the paired test of two models.

Both take a table of sums: float[N, C], what each of N questions adds to C totals. A figure is a
function of the totals, so that means, F1, BLEU and every ratio go one way. Questions about one
picture are drawn together where `groups` says so: they are not independent.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

Figure = Callable[[np.ndarray], np.ndarray]

EXACT_GROUPS = 14  # With so many differing groups or fewer, every exchange is counted.
_CHUNK = 1 << 24  # Numbers drawn at a time.


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Figure A minus figure B.

    Attributes:
        difference: With its interval.
        p_value: How likely at least this difference is, were the models exchangeable.
        groups: How many independent groups of questions there are.
        differing: In how many of them the models differ.
    """

    difference: Interval
    p_value: float
    groups: int
    differing: int


def mean_figure(totals: np.ndarray) -> np.ndarray:
    """Return float[...]: the first total over the second, of float[..., 2]."""
    return totals[..., 0] / totals[..., 1]


def mean_table(scores: Sequence[float]) -> np.ndarray:
    """Return float64[N, 2] for `mean_figure`: each question's score, and 1."""
    scores = np.asarray(scores, "float64")
    return np.stack([scores, np.ones_like(scores)], axis=-1)


def bootstrap_interval(
    table: np.ndarray,
    figure: Figure = mean_figure,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return a figure with its percentile interval.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.

    Args:
        table: float[N, C]; `mean_table` of scores, or another metric's counts.
        figure: totals float[..., C] -> float[...].
        groups: For each question what it shares with others, such as its picture; None: nothing.
        level: How often the interval is to hold the true figure.
        resamples: How many samples are drawn.
        seed: Of the draws.

    Raises:
        ValueError: for no question, numbers out of range, or groups that do not fit.
    """
    sums = _group_sums(table, groups)
    _check(level, resamples)
    draws = figure(_resampled(sums, resamples, seed))
    return Interval(float(figure(sums.sum(axis=0))), *_bounds(draws, level))


def paired_comparison(
    table_a: np.ndarray,
    table_b: np.ndarray,
    figure: Figure = mean_figure,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 10000,
    seed: int = 0,
) -> Comparison:
    """Compare two models that answered the same questions.

    The p-value is of the paired permutation test: were the models alike, each group's answers
    might as well have been exchanged. Unlike McNemar's test, with which it agrees for right and
    wrong, it takes graded scores, groups, and figures that are not means; unlike a bootstrap
    p-value it is exact. It is counted in full where few groups differ. The interval of the
    difference is a paired bootstrap's.

    Source: Noreen (1989), Computer-Intensive Methods; https://aclanthology.org/W05-0908.

    Args:
        table_a: float[N, C], of model A; see `bootstrap_interval`.
        table_b: The same of model B, in the same order.
        figure: totals float[..., C] -> float[...].
        groups: As in `bootstrap_interval`.
        level: Of the interval.
        resamples: How many samples, and exchanges, are drawn.
        seed: Of the draws.

    Raises:
        ValueError: if the tables do not fit each other, and as `bootstrap_interval`.
    """
    if np.shape(table_a) != np.shape(table_b):
        raise ValueError(
            f"Both models must have answered the same questions, got tables of shapes "
            f"{np.shape(table_a)} and {np.shape(table_b)}."
        )
    a, b = _group_sums(table_a, groups), _group_sums(table_b, groups)
    _check(level, resamples)
    columns = a.shape[1]

    def difference(totals):
        return figure(totals[..., :columns]) - figure(totals[..., columns:])

    both = np.concatenate([a, b], axis=1)
    value = float(difference(both.sum(axis=0)))
    draws = difference(_resampled(both, resamples, seed))
    differing = np.flatnonzero((a != b).any(axis=1))
    moved = _exchanged((b - a)[differing], resamples, seed)
    totals = np.concatenate([a.sum(axis=0) + moved, b.sum(axis=0) - moved], axis=1)
    # A hair of room: sums in another order differ in their last bit.
    extreme = np.count_nonzero(np.abs(difference(totals)) >= abs(value) - 1e-12)
    if len(differing) <= EXACT_GROUPS:
        p_value = extreme / len(totals)
    else:
        p_value = (extreme + 1) / (len(totals) + 1)  # What was observed is one of the exchanges.
    interval = Interval(value, *_bounds(draws, level))
    return Comparison(interval, float(p_value), len(a), len(differing))


def _group_sums(table, groups) -> np.ndarray:
    table = np.asarray(table, "float64")
    if table.ndim != 2 or not len(table):
        raise ValueError(f"Expected a table float[N, C] of N >= 1 questions, got {table.shape}.")
    if not np.isfinite(table).all():
        raise ValueError("The table holds values that are not finite numbers.")
    if groups is None:
        return table
    if len(groups) != len(table):
        raise ValueError(f"Expected a group for each of {len(table)} questions, got {len(groups)}.")
    names = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    sums = np.zeros((len(names), table.shape[1]))
    np.add.at(sums, [names[group] for group in groups], table)
    return sums


def _check(level, resamples):
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"Expected 0 < level < 1 and resamples >= 1, got {level}, {resamples}.")


def _resampled(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return float64[resamples, C]: totals of groups drawn with replacement."""
    rng, number = np.random.default_rng(seed), len(sums)
    totals, rows = [], max(1, _CHUNK // number)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = rng.integers(number, size=(count, number))
        drawn += number * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * number).reshape(count, number)
        totals.append(times @ sums)
    return np.concatenate(totals)


def _exchanged(steps: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return float64[R, C]: sums of the rows of some groups, whose answers are exchanged."""
    number = len(steps)
    if number <= EXACT_GROUPS:
        return (np.arange(1 << number)[:, None] >> np.arange(number) & 1) @ steps
    rng, rows = np.random.default_rng(seed), max(1, _CHUNK // number)
    counts = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return np.concatenate([rng.integers(2, size=(count, number)) @ steps for count in counts])


def _bounds(draws: np.ndarray, level: float) -> tuple[float, float]:
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(draws, [tail, 100.0 - tail])
    return float(low), float(high)
