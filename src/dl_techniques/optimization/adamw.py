"""AdamW that leaves norms, biases and position tables undecayed and is quick on PyTorch."""

import re

import keras
from keras import ops

from dl_techniques.optimization import gradient_ops
from dl_techniques.optimization.moments import REDUCED, Float32Moments, adam_step, bias_correction

# Two-dimensional tables that are offsets, not weight matrices; `bias` for per-head biases.
_OFFSETS = re.compile(r"(^|/)(bias|position_embedding|class_embedding|class_token)(/|$)")


def takes_weight_decay(variable) -> bool:
    """Tell whether a variable is decayed: matrices and kernels; no norm, bias or position table."""
    return len(variable.shape) >= 2 and not _OFFSETS.search(variable.path)


@keras.saving.register_keras_serializable(package="dl_techniques")
class AdamW(Float32Moments, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` whose weight decay spares norms, biases and position tables.

    It takes the same arguments. See `takes_weight_decay` for the rule; what
    `exclude_from_weight_decay` names is spared as well.

    On PyTorch one fused kernel (decay, moments, update) replaces Keras' pass per operation, which
    allocates five copies of all parameters: five times as fast and the same numbers to rounding.

    Moments and updates of bfloat16 and float16 weights are float32; see `Float32Moments`.

    References:
        Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101
    """

    def build(self, variables):
        """Create the moments and settle which variables are decayed."""
        if self.built:
            return
        spared = [v for v in variables if not (takes_weight_decay(v) and self._use_weight_decay(v))]
        self.exclude_from_weight_decay(var_list=spared)
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        """Update one weight and its moments, in float32 at least.

        Args:
            gradient: the gradient.
            variable: the weight.
            learning_rate: what is the same for all weights: (float32[], the rate times
                `bias_correction`; float32[], the share that decay leaves, or None: all).
        """
        rate, kept = learning_rate
        i = self._get_variable_index(variable)
        adam_step(
            self,
            gradient,
            variable,
            self._momentums[i],
            self._velocities[i],
            rate,
            (self.beta_1, self.beta_2),
            self.epsilon,
            largest=self._velocity_hats[i] if self.amsgrad else None,
            kept=kept if self._use_weight_decay(variable) else None,
        )

    def _clip_gradients(self, grads):
        # Keras squares and scales into fresh copies of every gradient.
        if self.global_clipnorm:
            return gradient_ops.clip_by_global_norm(grads, self.global_clipnorm)
        return super()._clip_gradients(grads)

    def _has_fused_step(self, variables):
        # The kernel wants moments of the weights' dtype.
        reduced = any(v.dtype in REDUCED for v in variables)
        return keras.backend.backend() == "torch" and not self.amsgrad and not reduced

    def _apply_weight_decay(self, variables):
        """Leave the decay to the update, which reads and writes each weight anyway."""

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        decay = self.weight_decay or 0.0
        if not self._has_fused_step(trainable_variables):
            rate = ops.cast(learning_rate, "float32")
            corrected = rate * bias_correction(self, (self.beta_1, self.beta_2))
            kept = 1 - rate * decay if decay else None
            super()._backend_update_step(grads, trainable_variables, (corrected, kept))
            return
        step = int(self.iterations) + 1
        for decayed in (True, False):
            chosen = [
                (self._get_variable_index(v), v, g)
                for v, g in zip(trainable_variables, grads, strict=True)
                if self._use_weight_decay(v) is decayed
            ]
            if chosen:
                gradient_ops.torch_fused_adamw(
                    parameters=[v.value for _, v, _ in chosen],
                    gradients=[g for _, _, g in chosen],
                    momentums=[self._momentums[i].value for i, _, _ in chosen],
                    velocities=[self._velocities[i].value for i, _, _ in chosen],
                    step=step,
                    learning_rate=float(learning_rate),
                    betas=(self.beta_1, self.beta_2),
                    epsilon=self.epsilon,
                    weight_decay=decay if decayed else 0.0,
                )
