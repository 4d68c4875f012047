"""What a ComponentOptimizer tells of itself: rates, norms, counts, averages, kept state."""

import numpy as np
from keras import ops

from dl_techniques.optimization.component_map import TOTAL


class ComponentReadings:
    """Mixin of `ComponentOptimizer`: what is read of it between steps."""

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rate of each component's next update, by pattern."""
        return {
            pattern: float(ops.convert_to_numpy(ops.convert_to_tensor(optimizer.learning_rate)))
            for pattern, optimizer in self._component_map.items()
        }

    @property
    def pending_batches(self) -> int:
        """The number of micro-batches that were accumulated and not yet applied."""
        return 0 if self._sums is None else _integer(self._sums.pending)

    @property
    def skipped_steps(self) -> int:
        """The number of batches that were skipped."""
        return _integer(self._record.skipped_steps) if self.built else 0

    @property
    def skipped_in_a_row(self) -> int:
        """The number of batches that were skipped since the last good one."""
        return _integer(self._record.skipped_in_a_row) if self.built else 0

    @property
    def gradient_norms(self) -> dict[str, float]:
        """The norms of the last update's gradients before clipping, by pattern and for "all".

        They are 0 before the first update.
        """
        names = [*(pattern for pattern, _ in self._component_map.items()), TOTAL]
        norms = ops.convert_to_numpy(self._record.norms) if self.built else [0.0] * len(names)
        return {name: float(norm) for name, norm in zip(names, norms, strict=True)}

    def averaged_values(self) -> list[np.ndarray]:
        """Return the averages of the trainable variables, float32, in the order of `build`.

        Raises:
            ValueError: there are none: no `ema_decay`, or not built yet.
        """
        return self._required_averages().values()

    def averaged_weights(self):
        """Return a context in which the model has the averages in place of its weights.

        It is for evaluation and saving. The weights from before come back at its end, so training
        inside it would be lost.

        Raises:
            ValueError: there are none: no `ema_decay`, or not built yet.
        """
        return self._required_averages().in_the_model()

    def state_by_component(self) -> dict[str, tuple[list, list]]:
        """Return, by pattern, a component's trainable variables and all variables kept for them.

        Raises:
            ValueError: the optimizer is not built.
        """
        variables = self._known_variables(None)
        per_variable = [self._sums.sums] if self._sums else []
        per_variable += [self._averages.averages] if self._averages else []
        return {
            pattern: (
                [variables[i] for i in self._groups[pattern]],
                [
                    *optimizer.variables,
                    *(kept[i] for kept in per_variable for i in self._groups[pattern]),
                ],
            )
            for pattern, optimizer in self._component_map.items()
        }

    def _required_averages(self):
        if self._averages is None:
            raise ValueError(
                "There are no averages of the weights: set ema_decay, and build the optimizer."
            )
        return self._averages


def _integer(variable):
    return int(ops.convert_to_numpy(variable))
