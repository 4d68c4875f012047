"""How the next token is chosen from logits: greedily, or drawn from a filtered distribution."""

from dataclasses import dataclass

import numpy as np
from keras import ops

_LARGEST = float(np.finfo("float32").max)


@dataclass(frozen=True)
class Sampler:
    """Settings of a draw; they are applied in the order in which they stand here.

    Attributes:
        repetition_penalty: Logits of ids that the row already holds are divided by it where
            positive, multiplied where negative; 1: off. https://arxiv.org/abs/1909.05858
        temperature: Logits are divided by it; 0: always the likeliest id.
        top_k: Only the k likeliest ids can be drawn; 0: all.
        top_p: Only the smallest set of likeliest ids that holds this probability can be drawn;
            1: all. https://arxiv.org/abs/1904.09751
        min_p: Only ids at least this share as probable as the likeliest can be drawn; 0: all.
            https://arxiv.org/abs/2407.01082

    Ids as probable as the last one kept are kept too.

    Raises:
        ValueError: for a number out of range.
    """

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        for name, good, wanted in (
            ("repetition_penalty", 0 < self.repetition_penalty <= _LARGEST, "> 0 in float32"),
            ("temperature", 0 <= self.temperature <= _LARGEST, ">= 0 in float32"),
            ("top_k", 0 <= self.top_k < 2**31 and self.top_k % 1 == 0, "a whole number >= 0"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
        ):
            if not good:
                raise ValueError(f"{name}={getattr(self, name)} must be {wanted}.")

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    @property
    def penalises(self) -> bool:
        """Whether it matters which ids a row already holds."""
        return self.repetition_penalty != 1

    def settings(self) -> np.ndarray:
        """Return float32[5] for `choose`: settings are data, so that none is compiled in."""
        values = (self.repetition_penalty, self.temperature, self.top_k, self.top_p, self.min_p)
        return np.array(values, "float32")


GREEDY = Sampler(temperature=0.0, top_k=0)
SAMPLERS = {"greedy": GREEDY, "sample": Sampler()}


def penalised(logits, held, penalty):
    """Return logits with the repetition penalty on the ids that `held` (bool[B, V]) marks."""
    less = ops.where(logits > 0, logits / penalty, logits * penalty)
    return ops.where(held, less, logits)


def draw(logits, settings, uniform):
    """Return int32[B]: one id per row, drawn from the filtered distribution.

    Args:
        logits: float32[B, V]; -inf for ids that cannot be drawn.
        settings: `Sampler.settings()`, or float32[B, 5] with those of each row; rows with
            temperature 0 among these take their likeliest id.
        uniform: float32[B] in [0, 1), the rows' random numbers.
    """
    weights = filtered_weights(logits, settings)
    cumulative = ops.cumsum(weights, axis=-1)
    reached = cumulative > ops.expand_dims(uniform, 1) * cumulative[:, -1:]
    # Sums are rounded: an id of weight zero is never taken, and if no id seems to be reached, the
    # likeliest, whose weight is 1, is.
    candidates = ops.where(ops.logical_and(reached, weights > 0), 2.0, weights)
    candidates = ops.where(_column(settings, 1) > 0, candidates, logits)
    return ops.cast(ops.argmax(candidates, axis=-1), "int32")


def filtered_weights(logits, settings):
    """Return float32[B, V], proportional to the probabilities; zero for what is filtered out.

    At temperature 0 nothing is filtered out.
    """
    temperature, top_k, top_p, min_p = (_column(settings, i) for i in range(1, 5))
    temperature = ops.where(temperature > 0, temperature, 1.0)
    # The likeliest has weight 1, however small the temperature is.
    weights = ops.exp((logits - ops.max(logits, axis=-1, keepdims=True)) / temperature)
    ordered = ops.flip(ops.sort(weights, axis=-1), axis=-1)
    rank = ops.arange(weights.shape[-1], dtype="float32")
    kept = ops.logical_or(rank < top_k, top_k < 1)
    ordered = ops.where(kept, ordered, 0.0)
    before = ops.cumsum(ordered, axis=-1) - ordered
    within = before < top_p * ops.sum(ordered, axis=-1, keepdims=True)
    kept = ops.logical_and(ordered > 0, ops.logical_or(within, top_p >= 1))
    smallest = ops.min(ops.where(kept, ordered, 1.0), axis=-1, keepdims=True)
    return ops.where(weights >= ops.maximum(smallest, min_p), weights, 0.0)


def penalty_of(settings):
    """Return the repetition penalties in `settings`, as `penalised` takes them."""
    return _column(settings, 0)


def _column(settings, i):
    """Return float32[1] or float32[B, 1]."""
    return settings[..., i : i + 1]


def uniform_numbers(seeds: np.ndarray, count: int) -> np.ndarray:
    """Return float32[B, count] in [0, 1): the first numbers of each row's stream.

    A row's numbers depend on its seed and the place alone, on every backend.
    """
    rows = [np.random.Generator(np.random.Philox(key=int(seed))).random(count) for seed in seeds]
    return np.minimum(np.array(rows), 1 - 2**-24).astype("float32").reshape(len(seeds), count)
