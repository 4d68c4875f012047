"""JaxSteps: single training steps on JAX that cost little beside what the device does."""

import keras


class JaxSteps(keras.Model):
    """A model whose `train_on_batch` does not walk through all layers in each step.

    Keras collects the variables of all layers several times a step, copies the batch to the device
    twice, and checks each value that it writes back. Here that is done by the first step after
    `compile` alone: what is trainable must not change without another `compile`.
    """

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """Train as `keras.Model.train_on_batch` does."""
        plain = return_dict and class_weight is None and not self.run_eagerly
        if not (plain and self.train_function is not None and _on_one_jax_device()):
            return super().train_on_batch(x, y, sample_weight, class_weight, return_dict)
        import jax

        metrics, variables = self._step_state()
        for metric in metrics:
            metric.reset_state()
        state = tuple([variable.value for variable in group] for group in variables)
        batch = jax.tree.map(jax.device_put, (x, y, sample_weight))
        logs, state = self.train_function(state, iter([batch]))
        for group, values in zip(variables, state, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable._value = value  # Of the same shape and dtype: the step gave it.
        return {name: float(value) for name, value in logs.items()}

    def _step_state(self):
        """Return the metrics, and the variables in the groups that `train_function` takes."""
        function, *state = self.__dict__.get("_known_step_state", (None,))
        if function is not self.train_function:
            variables = (
                self.trainable_variables,
                self.non_trainable_variables,
                self.optimizer.variables,
                self.metrics_variables,
            )
            state = self.metrics, variables
            # Past Keras, which would track the lists.
            self.__dict__["_known_step_state"] = (self.train_function, *state)
        return state


def _on_one_jax_device() -> bool:
    return keras.backend.backend() == "jax" and keras.distribution.distribution() is None
