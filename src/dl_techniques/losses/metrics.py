"""Metrics of next-token training, with the shift and the ignored labels of `NanoVLMLoss`."""

from collections.abc import Sequence

import keras
from keras import ops

from dl_techniques.losses.nanovlm_loss import (
    next_token_targets,
    supervised_token_count,
    token_weights,
)


class _IgnoringMetric(keras.metrics.Metric):
    """A metric with an `ignore_index`."""

    def __init__(self, ignore_index: int = -100, name: str | None = None):
        super().__init__(name=name)
        self.ignore_index = ignore_index

    def get_config(self) -> dict:
        """Return the constructor arguments."""
        return {"ignore_index": self.ignore_index, "name": self.name}


@keras.saving.register_keras_serializable(package="dl_techniques")
class NextTokenAccuracy(_IgnoringMetric):
    """Share of supervised tokens whose largest logit is right, over everything since the reset.

    Args:
        ignore_index: label of what is not learned.
        name: name of the metric.
    """

    def __init__(self, ignore_index: int = -100, name: str = "next_token_accuracy"):
        super().__init__(ignore_index, name)
        self.correct = self.add_variable((), "zeros", dtype="float32", name="correct")
        self.total = self.add_variable((), "zeros", dtype="float32", name="total")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch: labels int[B, S], logits float[B, P + S, V], weights [B] or [B, S]."""
        labels, logits = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        targets = next_token_targets(labels, ops.shape(logits)[1], self.ignore_index)
        weights = token_weights(targets, labels.shape, sample_weight, self.ignore_index)
        right = ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), targets)
        self.add(ops.sum(ops.cast(right, "float32") * weights), ops.sum(weights))

    def add(self, correct, total):
        """Add float32[] weights: of what was right, and of all that was asked."""
        self.correct.assign_add(correct)
        self.total.assign_add(total)

    def result(self):
        """Return float32[]; 0 when no token was supervised."""
        return ops.divide_no_nan(self.correct, self.total)


@keras.saving.register_keras_serializable(package="dl_techniques")
class SupervisedTokens(_IgnoringMetric):
    """Number of supervised tokens since the reset, exact up to 2**31 - 1.

    Args:
        ignore_index: label of what is not learned.
        name: name of the metric.
    """

    def __init__(self, ignore_index: int = -100, name: str = "supervised_tokens"):
        super().__init__(ignore_index, name)
        # float32 would stop counting single tokens at 2**24.
        self.count = self.add_variable((), "zeros", dtype="int32", name="count")

    def update_state(self, y_true, y_pred=None, sample_weight=None):
        """Add a batch of labels int[B, S]; logits and weights do not matter."""
        tokens = supervised_token_count(y_true, self.ignore_index)
        self.count.assign_add(ops.cast(tokens, "int32"))

    def result(self):
        """Return int32[]."""
        return ops.convert_to_tensor(self.count)


@keras.saving.register_keras_serializable(package="dl_techniques")
class EmptyBatches(SupervisedTokens):
    """Number of batches since the reset that held no supervised token at all.

    Such a batch teaches nothing; more than a stray one points at truncation or a wrong mask.

    Args:
        ignore_index: label of what is not learned.
        name: name of the metric.
    """

    def __init__(self, ignore_index: int = -100, name: str = "empty_batches"):
        super().__init__(ignore_index, name)

    def update_state(self, y_true, y_pred=None, sample_weight=None):
        """Add a batch of labels int[B, S]; logits and weights do not matter."""
        tokens = supervised_token_count(y_true, self.ignore_index)
        self.count.assign_add(ops.cast(ops.equal(tokens, 0.0), "int32"))


@keras.saving.register_keras_serializable(package="dl_techniques")
class NamedMeans(keras.metrics.Metric):
    """Weighted means of several things since the reset, each under its own name in the results.

    Args:
        names: what the means are called.
        prefix: stands before each name.
        name: name of the metric.
    """

    def __init__(self, names: Sequence[str], prefix: str = "", name: str = "named_means"):
        super().__init__(name=name)
        self.names = tuple(names)
        self.prefix = prefix
        shape = (len(self.names),)
        self.sums = self.add_variable(shape, "zeros", dtype="float32", name="sums")
        self.weights = self.add_variable(shape, "zeros", dtype="float32", name="weights")

    def update_state(self, sums, weights):
        """Add float32[len(names)]: weighted sums, and the sums of the weights."""
        self.sums.assign_add(sums)
        self.weights.assign_add(weights)

    def add(self, **means):
        """Add (weighted sum float32[], sum of weights float32[]) of some of the names.

        Raises:
            KeyError: an unknown name.
        """
        unknown = set(means) - set(self.names)
        if unknown:
            raise KeyError(f"{sorted(unknown)} are not among {list(self.names)}.")
        zero = ops.zeros((), "float32")
        pairs = [means.get(name, (zero, zero)) for name in self.names]
        self.update_state(*(ops.stack(column) for column in zip(*pairs, strict=True)))

    def result(self) -> dict:
        """Return name -> float32[]; NaN of what nothing was seen of."""
        sums, weights = ops.convert_to_tensor(self.sums), ops.convert_to_tensor(self.weights)
        seen = ops.not_equal(weights, 0.0)
        means = ops.where(seen, sums / ops.where(seen, weights, 1.0), float("nan"))
        return {self.prefix + name: means[i] for i, name in enumerate(self.names)}

    def get_config(self) -> dict:
        """Return the constructor arguments."""
        return {"names": self.names, "prefix": self.prefix, "name": self.name}
