"""TrainedModel: what Keras' training does differently for a next-token loss."""

import contextlib

import keras
from keras import ops

from dl_techniques.losses.chunked_cross_entropy import chunked_cross_entropy
from dl_techniques.losses.metrics import NextTokenAccuracy, SupervisedTokens
from dl_techniques.losses.nanovlm_loss import (
    NanoVLMLoss,
    next_token_targets,
    supervised_token_count,
    token_weights,
)
from dl_techniques.models.batch_checks import checked_data
from dl_techniques.models.mirrored_steps import MirroredSteps
from dl_techniques.optimization.component_optimizer import token_weight


class TrainedModel(MirroredSteps):
    """A model with a `language_decoder` and `batch_checks`, whose `call` obeys `gives_states`.

    Batches count by their learned tokens where they are accumulated. With a `NanoVLMLoss` that has
    a `chunk_size`, training and evaluation never hold the logits of all tokens: `call` gives the
    decoder's states, and the loss and `NextTokenAccuracy` are computed of them chunk by chunk.

    Attributes:
        gives_states: Whether `call` returns float[B, L, hidden_dim] states in place of logits; only
            inside of a step.
    """

    gives_states = False

    def train_step(self, *args):
        # Keras gives (data) or, on JAX, (state, data).
        _, labels, _ = keras.utils.unpack_x_y_sample_weight(args[-1])
        with (
            token_weight(self.optimizer, supervised_token_count(labels)),
            self._states_if_chunked(),
        ):
            return super().train_step(*args)

    def test_step(self, *args):
        with self._states_if_chunked():
            return super().test_step(*args)

    @contextlib.contextmanager
    def _states_if_chunked(self):
        chunked = isinstance(self.loss, NanoVLMLoss) and self.loss.chunk_size is not None
        self.__dict__["gives_states"] = chunked
        try:
            yield
        finally:
            self.__dict__["gives_states"] = False

    def _metrics_of_states(self, y, states) -> list:
        """Return the compiled metrics, none of which may need logits."""
        if self._compile_metrics is None:
            return []
        if not self._compile_metrics.built:
            self._compile_metrics.build(y, states)
        metrics = list(self._compile_metrics.metrics)
        for metric in metrics:
            if not isinstance(metric, (NextTokenAccuracy, SupervisedTokens)):
                raise ValueError(
                    f"The metric {metric.name!r} needs logits, which a loss with chunk_size never "
                    "has: leave it out, or set chunk_size=None."
                )
        return metrics

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return the loss, of states where `call` gave these."""
        if not self.gives_states:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        head, tied = self.language_decoder.head
        ignored = self.loss.ignore_index
        targets = next_token_targets(y, ops.shape(y_pred)[1], ignored)
        weights = token_weights(targets, ops.shape(y), sample_weight, ignored)
        total = ops.sum(weights)
        loss, right = chunked_cross_entropy(
            y_pred, targets, weights, head, self.loss.chunk_size, self.loss.label_smoothing, tied
        )
        # Here, as the accuracy is not known outside of the differentiated function.
        for metric in self._metrics_of_states(y, y_pred):
            if isinstance(metric, NextTokenAccuracy):
                metric.add(right, total)
        return ops.divide_no_nan(loss, total) + sum(self.losses)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Return the metrics' results."""
        if not self.gives_states:
            return super().compute_metrics(x, y, y_pred, sample_weight)
        for metric in self._metrics_of_states(y, y_pred):
            if not isinstance(metric, NextTokenAccuracy):
                metric.update_state(y)
        return self.get_metrics_result()

    def fit(self, x=None, y=None, *args, validation_data=None, **kwargs):
        """Train as `keras.Model.fit` does, every batch checked first."""
        if isinstance(validation_data, tuple):
            self.batch_checks.check(*validation_data[:2])
        elif validation_data is not None:
            validation_data = checked_data(self.batch_checks, validation_data)
        x = checked_data(self.batch_checks, x, y)
        return super().fit(x, y, *args, validation_data=validation_data, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """Evaluate as `keras.Model.evaluate` does, every batch checked first."""
        return super().evaluate(checked_data(self.batch_checks, x, y), y, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """Predict as `keras.Model.predict` does, every batch checked first."""
        return super().predict(checked_data(self.batch_checks, x), *args, **kwargs)

    def train_on_batch(self, x, y=None, *args, **kwargs):
        """Train as `keras.Model.train_on_batch` does, the batch checked first."""
        self.batch_checks.check(x, y)
        return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x, y=None, *args, **kwargs):
        """Test as `keras.Model.test_on_batch` does, the batch checked first."""
        self.batch_checks.check(x, y)
        return super().test_on_batch(x, y, *args, **kwargs)
