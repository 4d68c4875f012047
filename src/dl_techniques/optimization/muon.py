"""Muon for weight matrices, Adam for everything else."""

import functools

import keras
from keras import ops

from dl_techniques.optimization.adamw import takes_weight_decay
from dl_techniques.optimization.moments import REDUCED, Float32Moments, adam_step, bias_correction
from dl_techniques.utils.traced_once import traced_once


@keras.saving.register_keras_serializable(package="dl_techniques")
class Muon(Float32Moments, keras.optimizers.Muon):
    """`keras.optimizers.Muon` that orthogonalises the updates of weight matrices only.

    It takes the same arguments. Norms, biases (those per head are two-dimensional), tables of
    positions, whatever has "embedding" in its path and what `exclude_layers` names are left to
    Muon's Adam. Moments and updates of bfloat16 and float16 weights are float32.

    References:
        Jordan et al., 2024, https://kellerjordan.github.io/posts/muon
    """

    def update_step(self, gradient, variable, learning_rate):
        """Update one weight and its moments, in float32 at least."""
        if variable.dtype in REDUCED:
            gradient = ops.cast(gradient, "float32")
        super().update_step(gradient, variable, learning_rate)

    def zeropower_via_newtonschulz5(self, x, steps: int):
        """Return the matrix with its singular values near one; `steps` is `ns_steps`."""
        return self._orthogonalise(x)

    @functools.cached_property
    def _orthogonalise(self):
        return traced_once(
            functools.partial(super().zeropower_via_newtonschulz5, steps=self.ns_steps)
        )

    def _should_use_adamw(self, variable):
        return super()._should_use_adamw(variable) or not takes_weight_decay(variable)

    def _adamw_update_step(self, gradient, variable, learning_rate, m, v):
        betas = self.adam_beta_1, self.adam_beta_2
        rate = learning_rate * bias_correction(self, betas)
        adam_step(self, gradient, variable, m, v, rate, betas, self.epsilon)
