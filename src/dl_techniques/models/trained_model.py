"""TrainedModel: what Keras' training does differently for a vision-language model."""

import contextlib

import keras
from keras import ops

from dl_techniques.losses.chunked_cross_entropy import chunked_cross_entropy
from dl_techniques.losses.metrics import NamedMeans, NextTokenAccuracy, SupervisedTokens
from dl_techniques.losses.nanovlm_loss import NanoVLMLoss, supervised_token_count, token_losses
from dl_techniques.models.batch_checks import checked_data
from dl_techniques.models.contrast import contrast, paired_rows
from dl_techniques.models.jax_steps import JaxSteps
from dl_techniques.models.mirrored_steps import MirroredSteps
from dl_techniques.models.objectives import Objective
from dl_techniques.models.step_tokens import StepTokens
from dl_techniques.optimization.component_optimizer import token_weight


class TrainedModel(JaxSteps, MirroredSteps):
    """A model with a `language_decoder` and `batch_checks`, whose `call` obeys the attributes.

    Batches count by their learned tokens where they are accumulated (see `Objective`). With a
    `NanoVLMLoss` that has a `chunk_size`, training and evaluation never hold the logits of all
    tokens: `call` gives the decoder's states, and the loss and `NextTokenAccuracy` are computed of
    them chunk by chunk.

    Attributes:
        in_step: Whether a step of training or evaluation with a `NanoVLMLoss` runs.
        gives_states: Whether `call` has to return float[B, L, hidden_dim] states in place of
            logits; only inside of a step.
        gives_contrast: Whether `call` has to return `outputs_with_contrast`; only inside of a step.
    """

    in_step = False
    _objective = None
    _part_means = None
    _source_means = None

    @property
    def objective(self) -> Objective | None:
        """What a step minimises; None: the mean loss of all learned tokens.

        With one, the results of a step tell its parts apart: "loss_vlm", "loss_text" and
        "loss_contrast", before their factors, NaN where there is nothing of the kind. It is not
        saved with the model. Under a `MirroredStrategy` set it inside the scope.
        """
        return self._objective

    @objective.setter
    def objective(self, value: Objective | None):
        if value is not None and not isinstance(value, Objective):
            raise ValueError(f"objective must be an Objective or None, got {value!r}.")
        means = None
        if value is not None:
            means = NamedMeans(("vlm", "text", "contrast"), "loss_", name="loss_parts")
        self._set_for_steps(_objective=value, _part_means=means)
        self.batch_checks.one_document = value is not None and value.learns_contrast

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources 1, 2, ... in `inputs["source_ids"]`, whose losses a step tells.

        With names, the results of a step have "source/<name>": the mean loss of the source's
        learned tokens, NaN where there is none. Not saved with the model.
        """
        return () if self._source_means is None else self._source_means.names

    @source_names.setter
    def source_names(self, value):
        names = tuple(value or ())
        if isinstance(value, str) or len(set(names)) < len(names) or not all(names):
            raise ValueError(f"source_names must be names of their own, got {value!r}.")
        means = NamedMeans(names, "source/", name="sources") if names else None
        self._set_for_steps(_source_means=means)
        self.batch_checks.num_sources = len(names) or None

    def _set_for_steps(self, **values):
        # Past Keras, which would save metrics that are attributes. Steps are compiled anew.
        self.__dict__.update(values, train_function=None, test_function=None)

    @property
    def metrics(self):
        means = [m for m in (self._part_means, self._source_means) if m is not None]
        return [*super().metrics, *means]

    @property
    def gives_states(self) -> bool:
        return self.in_step and self.loss.chunk_size is not None

    @property
    def gives_contrast(self) -> bool:
        return self.in_step and self.objective is not None and self.objective.learns_contrast

    def train_step(self, *args):
        # Keras gives (data) or, on JAX, (state, data).
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(args[-1])
        if self.source_names and _as_inputs(x).get("source_ids") is None:
            raise ValueError(
                f"The losses of source_names={list(self.source_names)} need inputs['source_ids']."
            )
        with self._step():
            with token_weight(self.optimizer, self._batch_weight(x, y, sample_weight)):
                return super().train_step(*args)

    def test_step(self, *args):
        with self._step():
            return super().test_step(*args)

    @contextlib.contextmanager
    def _step(self):
        known = isinstance(self.loss, NanoVLMLoss)
        if not known and (self.objective is not None or self.source_names):
            raise ValueError(
                f"objective and source_names need the loss NanoVLMLoss, got {self.loss!r}."
            )
        self.__dict__["in_step"] = known
        try:
            yield
        finally:
            self.__dict__["in_step"] = False

    def _batch_weight(self, x, y, sample_weight):
        """Return float32[]: what the batch counts for where it is accumulated with others."""
        if self.objective is None:
            return supervised_token_count(y)
        rows = paired_rows(_as_inputs(x), y, self.loss.ignore_index)
        pairs = ops.sum(ops.cast(rows, "float32"))
        if not self.objective.learns_tokens:
            return pairs
        if self.objective.lambda_text is None:
            return supervised_token_count(y)
        learned = ops.any(ops.not_equal(self.step_tokens(x, y, sample_weight).weights, 0.0))
        if self.objective.learns_contrast:
            learned = ops.logical_or(learned, pairs > 0.0)
        return ops.cast(learned, "float32")

    def step_tokens(self, x, y, sample_weight=None, length=None) -> StepTokens:
        """Return what each of `length` logit positions learns; default: one for each label."""
        return StepTokens.of_batch(self, _as_inputs(x), y, sample_weight, length)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return the loss of what `call` gave."""
        if not self.in_step:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        outputs = y_pred if self.gives_contrast else {"tokens": y_pred}
        loss = sum(self.losses)
        if "tokens" in outputs:
            length = ops.shape(outputs["tokens"])[1]
            tokens = self.step_tokens(x, y, sample_weight, length)
            loss = loss + self.loss_of_tokens(outputs["tokens"], tokens)
        if "captions" in outputs:
            ignored, pair_loss = self.loss.ignore_index, self.objective.pair_loss
            value, pairs = contrast(pair_loss, outputs, _as_inputs(x), y, ignored)
            self._part_means.add(contrast=(value * pairs, pairs))
            loss = loss + self.objective.lambda_contrast * value
        return loss

    def loss_of_tokens(self, y_pred, tokens: StepTokens):
        """Return float32[], the loss of logits or states, and tell the metrics of it."""
        if self.gives_states:
            total, losses = self._chunked_loss(y_pred, tokens)
        else:
            smoothing, ignored = self.loss.label_smoothing, self.loss.ignore_index
            losses = token_losses(y_pred, tokens.targets, smoothing, ignored)
            total = ops.sum(losses * tokens.weights)
        # Here, as nobody outside of the differentiated function knows the losses of tokens.
        if self._part_means is not None:
            self._part_means.add(**tokens.sums_of_parts(losses))
        if tokens.sources is not None:
            count = len(self.source_names)
            self._source_means.update_state(*tokens.sums_of_sources(losses, count))
        return ops.divide_no_nan(total, tokens.divisor)

    def _chunked_loss(self, states, tokens):
        """Return the weighted sum of the losses float32[], and float32[B, L] themselves."""
        head, tied = self.language_decoder.head
        settings = self.loss.chunk_size, self.loss.label_smoothing, tied
        total, losses, hits = chunked_cross_entropy(
            states, tokens.targets, tokens.weights, head, *settings
        )
        for metric in self._metrics_without_logits(states):
            if isinstance(metric, NextTokenAccuracy):
                metric.add(ops.sum(hits * tokens.learned), ops.sum(tokens.learned))
        return total, losses

    def _metrics_without_logits(self, array) -> list:
        """Return the compiled metrics, none of which may need logits."""
        if self._compile_metrics is None:
            return []
        if not self._compile_metrics.built:
            self._compile_metrics.build(array, array)
        metrics = list(self._compile_metrics.metrics)
        for metric in metrics:
            if not isinstance(metric, (NextTokenAccuracy, SupervisedTokens)):
                raise ValueError(
                    f"The metric {metric.name!r} needs logits, which a loss with chunk_size never "
                    "has, nor a contrast alone: leave it out, set chunk_size=None, or learn tokens."
                )
        return metrics

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Return the metrics' results."""
        outputs = y_pred if self.gives_contrast else {"tokens": y_pred}
        if "tokens" in outputs and not self.gives_states:
            return super().compute_metrics(x, y, outputs["tokens"], sample_weight)
        for metric in self._metrics_without_logits(y):
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


def _as_inputs(x) -> dict:
    return x if isinstance(x, dict) else {"text_tokens": x}
