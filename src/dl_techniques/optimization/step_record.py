"""What became of an optimizer's steps: how many were skipped, how large the gradients were."""

import keras
from keras import ops


class StepRecord:
    """Variables of an optimizer that a step updates beside the weights.

    Args:
        optimizer: holds the variables, so that they are saved with it.
        groups: number of groups of variables whose gradients are measured.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, groups: int):
        self.skipped_steps = optimizer.add_variable((), dtype="int32", name="skipped_steps")
        self.skipped_in_a_row = optimizer.add_variable((), dtype="int32", name="skipped_in_a_row")
        # The groups' norms, then that of all gradients.
        self.norms = optimizer.add_variable((groups + 1,), dtype="float32", name="gradient_norms")

    def count(self, finite) -> None:
        """Count a step whose gradients are finite (bool[]) or, if not, is skipped."""
        skipped = ops.cast(ops.logical_not(finite), "int32")
        self.skipped_steps.assign_add(skipped)
        self.skipped_in_a_row.assign((self.skipped_in_a_row + skipped) * skipped)

    def set_norms(self, norms, total) -> None:
        """Keep the norms float32[groups] of an update's gradients and that of all, float32[]."""
        self.norms.assign(ops.append(norms, total))
