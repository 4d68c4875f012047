"""One optimizer per model component, with one gradient norm and accumulation by tokens."""

import contextlib

import keras
from keras import ops

from dl_techniques.optimization import gradient_ops
from dl_techniques.optimization.component_map import ComponentMap
from dl_techniques.optimization.component_readings import ComponentReadings
from dl_techniques.optimization.gradient_sums import GradientSums
from dl_techniques.optimization.step_record import StepRecord
from dl_techniques.optimization.weight_averages import WeightAverages


@contextlib.contextmanager
def token_weight(optimizer, weight):
    """Give the gradients that are applied inside this context the weight of their tokens.

    Keras' `train_step` has no argument for it, so a model writes, on any backend::

        def train_step(self, *args):  # (data) or, on JAX, (state, data)
            labels = args[-1][1]
            with token_weight(self.optimizer, supervised_token_count(labels)):
                return super().train_step(*args)

    The `ComponentOptimizer` is found inside a `LossScaleOptimizer` too; any other optimizer takes
    no weights and is left alone.

    Args:
        optimizer: the optimizer of the model, or None.
        weight: float32[] or float, the number of supervised tokens behind the gradients.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if isinstance(inner, ComponentOptimizer):
        with inner.token_weight(weight):
            yield
    else:
        yield


@keras.saving.register_keras_serializable(package="dl_techniques")
class ComponentOptimizer(ComponentReadings, keras.optimizers.MultiOptimizer):
    """One optimizer, with its own learning rate or schedule, for each component of a model.

    A pattern is a regular expression over whole parts of `variable.path`: "vision_encoder" covers
    "nano_vlm/vision_encoder/block_0/attention/q_proj/kernel" but neither "vision_encoder_2/..."
    nor "old_vision_encoder/..."; "language_decoder/block_[0-3]" covers four blocks. Every
    trainable variable must match exactly one pattern and every pattern at least one variable.

    Each call of `apply` takes the gradients of a token-MEAN loss. With `accumulation_steps=n` they
    are added up with the weights given to `token_weight` (default 1.0), and every n-th call
    applies sum(w * g) / sum(w), which is the gradient of the one big batch; in between nothing
    moves: no weight, moment, iteration count or schedule. Batches that do not fill up the n are
    kept for the next calls or applied by `apply_accumulated`. The sums are float32 and exist only
    when accumulating.

    The gradients are clipped once, by the norm over all components together, before the
    components' optimizers see them. A variable without gradient (None) counts as zero. On PyTorch
    the passed gradients may be scaled in place.

    A batch whose gradients have no finite norm is skipped: it changes no weight, moment, iteration
    count, schedule, sum or average; when accumulating, another batch takes its place. It is
    counted in `skipped_steps` and `skipped_in_a_row`. A `LossScaleOptimizer` around this one skips
    such batches itself, uncounted, as it finds its scale by them; what it lets through and is too
    large to be squared is skipped and counted here.

    Args:
        components: pattern -> optimizer, each its own instance.
        global_clipnorm: largest norm of all gradients together; None does not clip.
        accumulation_steps: calls of `apply` per update; None updates in `apply_accumulated` only.
        ema_decay: decay of float32 averages of the trainable variables, moved by every update
            (see `WeightAverages` for the warm-up); None keeps none.
        name: name of the optimizer.

    Raises:
        ValueError: bad constructor values, or an inner optimizer that clips by global norm,
            accumulates or scales the loss itself. In `build`: variables or patterns left over.
    """

    def __init__(
        self,
        components: dict[str, keras.optimizers.Optimizer],
        global_clipnorm: float | None = None,
        accumulation_steps: int | None = 1,
        ema_decay: float | None = None,
        name: str = "component_optimizer",
    ):
        _check_settings(global_clipnorm, accumulation_steps, ema_decay)
        component_map = ComponentMap(components)
        super().__init__(component_map, name=name)
        self._component_map = component_map
        self._norm_limit = global_clipnorm
        self.accumulation_steps = accumulation_steps
        self.ema_decay = ema_decay
        self._token_weight = None
        self._sums = None
        self._averages = None

    def __dir__(self):
        # Keras' saver looks through dir() for more state. That of the inner optimizers is part of
        # `variables` already; found again, it would be written a second time.
        return [n for n in super().__dir__() if n not in ("_inner_optimizers", "optimizers")]

    def build(self, var_list):
        """Give each variable to its component and create all state.

        Raises:
            ValueError: a variable that matches no pattern or several, or a pattern without one.
        """
        if self.built:
            return
        self._groups = self._component_map.groups([variable.path for variable in var_list])
        super().build(var_list)
        self._record = StepRecord(self, len(self._groups))
        if self.accumulation_steps != 1:
            self._sums = GradientSums(self, var_list)
        if self.ema_decay is not None:
            self._averages = WeightAverages(self, var_list, self.ema_decay)

    @contextlib.contextmanager
    def token_weight(self, weight):
        """Weigh the gradients applied inside this context; see the function `token_weight`."""
        before, self._token_weight = self._token_weight, weight
        try:
            yield
        finally:
            self._token_weight = before

    def apply(self, grads, trainable_variables=None):
        """Take the gradients of one (micro-)batch and update when `accumulation_steps` are in.

        Args:
            grads: one gradient or None per trainable variable, in the order of `build`.
            trainable_variables: the variables; builds the optimizer on the first call.

        Raises:
            ValueError: the gradients are not one per variable, or all are None.
        """
        variables = self._known_variables(trainable_variables)
        if len(grads) != len(variables):
            raise ValueError(
                f"Got {len(grads)} gradients for {len(variables)} trainable variables."
            )
        if all(gradient is None for gradient in grads):
            raise ValueError(
                "No gradients for any trainable variable: the loss does not depend on the model."
            )
        if self._sums is None:
            self._update(gradient_ops.dense_gradients(grads, variables), variables, None)
            return
        self._accumulate([None if g is None else gradient_ops.dense(g) for g in grads])
        if self.accumulation_steps is not None:
            self._apply_sums_if(self._sums.pending >= self.accumulation_steps, variables)

    def apply_accumulated(self, trainable_variables=None):
        """Update with what was accumulated, if anything, and start anew.

        Args:
            trainable_variables: the variables the optimizer was built with; default those.

        Raises:
            ValueError: the optimizer does not accumulate.
        """
        if self.accumulation_steps == 1:
            raise ValueError(
                "apply_accumulated needs accumulation_steps > 1, or None to apply by hand only."
            )
        variables = self._known_variables(trainable_variables)
        self._apply_sums_if(self._sums.pending > 0, variables)

    def stateless_apply_accumulated(self, optimizer_variables, trainable_variables):
        """Do `apply_accumulated` on values: the counterpart of `stateless_apply` for JAX.

        Args:
            optimizer_variables: values of `variables`.
            trainable_variables: values of the trainable variables.

        Returns:
            The new values of the trainable variables, then those of `variables`.
        """
        trained = self._known_variables(None)
        values = [*zip(trained, trainable_variables, strict=True)]
        values += zip(self.variables, optimizer_variables, strict=True)
        with keras.StatelessScope(values) as scope:
            self.apply_accumulated()
        return (
            [scope.get_current_value(v) for v in trained],
            [scope.get_current_value(v) for v in self.variables],
        )

    def _known_variables(self, trainable_variables):
        if not self.built:
            if trainable_variables is None:
                raise ValueError("Call build(trainable_variables) before applying without them.")
            self.build(list(trainable_variables))
        known = list(self._trainable_variables)
        if trainable_variables is not None:
            given = [self._var_key(v) for v in trainable_variables]
            if given != [self._var_key(v) for v in known]:
                raise ValueError(
                    "The trainable variables are not those the optimizer was built with. Build a "
                    "new optimizer after freezing or unfreezing parts of a model."
                )
        return known

    def _accumulate(self, gradients):
        weight = 1.0 if self._token_weight is None else self._token_weight
        weight = ops.convert_to_tensor(weight, dtype="float32")
        norm = gradient_ops.global_norm([g for g in gradients if g is not None])
        finite = ops.isfinite(norm * weight)
        self._record.count(finite)
        gradient_ops.run_where(
            finite, lambda: self._sums.add(gradients, weight), self._sums.variables
        )

    def _apply_sums_if(self, predicate, variables):
        def update():
            sums = [total.value for total in self._sums.sums]
            self._update(sums, variables, self._sums.scale())
            self._sums.clear()

        gradient_ops.run_if(predicate, update, [*variables, *self.variables])

    def _update(self, gradients, variables, scale):
        """Update by the gradients times `scale` (None: 1), if their norm is finite."""
        norms = gradient_ops.group_norms(gradients, self._groups.values())
        norms = norms if scale is None else norms * scale
        total = ops.sqrt(ops.sum(ops.square(norms)))
        finite = ops.isfinite(total)
        self._record.count(finite)

        def update():
            self._record.set_norms(norms, total)
            self._move(self._clipped(gradients, total, scale), variables)

        gradient_ops.run_where(finite, update, [*variables, *self.variables])

    def _clipped(self, gradients, norm, scale):
        factor = scale
        if self._norm_limit is not None:
            clip = gradient_ops.clip_factor(norm, self._norm_limit)
            factor = clip if scale is None else clip * scale
        return gradients if factor is None else gradient_ops.scaled(gradients, factor)

    def _move(self, gradients, variables):
        gradients = [ops.cast(g, v.dtype) for g, v in zip(gradients, variables, strict=True)]
        super().apply(gradients, variables)
        if self._averages is not None:
            self._averages.update(self.iterations)

    def get_config(self) -> dict:
        """Return the constructor arguments, the optimizers serialized."""
        return {
            "components": {
                pattern: keras.optimizers.serialize(optimizer)
                for pattern, optimizer in self._component_map.items()
            },
            "global_clipnorm": self._norm_limit,
            "accumulation_steps": self.accumulation_steps,
            "ema_decay": self.ema_decay,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Rebuild the optimizer and its components."""
        components = {
            pattern: keras.optimizers.deserialize(optimizer, custom_objects)
            for pattern, optimizer in config["components"].items()
        }
        return cls(**{**config, "components": components})


def _check_settings(global_clipnorm, accumulation_steps, ema_decay):
    if global_clipnorm is not None and not global_clipnorm > 0:
        raise ValueError(f"global_clipnorm must be > 0 or None, got {global_clipnorm}.")
    if accumulation_steps is not None and (
        not isinstance(accumulation_steps, int) or accumulation_steps < 1
    ):
        raise ValueError(
            f"accumulation_steps must be a whole number >= 1, or None to apply by hand, got "
            f"{accumulation_steps!r}."
        )
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(f"ema_decay must lie between 0 and 1 or be None, got {ema_decay}.")
