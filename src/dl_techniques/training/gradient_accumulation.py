"""GradientAccumulationTrainer: several small batches make one update."""

import keras

from dl_techniques.training.setup import default_optimizer
from dl_techniques.training.trainer import NanoVLMTrainer


class GradientAccumulationTrainer:
    """Adds up gradients, weighted by supervised tokens, until they are applied.

    Uneven batches give exactly the update of the one big batch they make together.

    Args:
        model: The model; it is compiled here.
        loss_fn: Default `NanoVLMLoss()`.
        accumulation_steps: Batches per update of `train_step`.
        optimizer: A `ComponentOptimizer` with `accumulation_steps=None`; default AdamW per
            component.

    Raises:
        ValueError: for an optimizer that applies by itself, or fewer steps than 1.
    """

    def __init__(self, model, loss_fn=None, accumulation_steps: int = 4, optimizer=None):
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps={accumulation_steps} must be at least 1.")
        optimizer = optimizer or default_optimizer(model, accumulation_steps=None)
        if getattr(optimizer, "accumulation_steps", 1) is not None:
            raise ValueError(
                "The optimizer must be a ComponentOptimizer with accumulation_steps=None: the "
                "trainer says when to apply."
            )
        self.accumulation_steps = accumulation_steps
        self.optimizer = optimizer
        self.trainer = NanoVLMTrainer(model, loss_fn, optimizer)
        self.model = model

    def accumulate_gradients(self, batch) -> float:
        """Add the gradients of one batch `(inputs, labels)`; return its loss, unscaled."""
        return self.trainer.train_step(batch)["loss"]

    def apply_accumulated_gradients(self) -> None:
        """Update the weights with what was added up since the last time, and start anew.

        Raises:
            ValueError: if nothing was accumulated.
        """
        if self.optimizer.pending_batches == 0:
            raise ValueError("Nothing to apply: call accumulate_gradients first.")
        if keras.backend.backend() == "torch":
            import torch

            with torch.no_grad():
                self.optimizer.apply_accumulated()
        else:
            self.optimizer.apply_accumulated()

    def train_step(self, batch) -> dict:
        """Accumulate one batch; apply when `accumulation_steps` are in. Returns loss, accuracy."""
        logs = self.trainer.train_step(batch)
        if self.optimizer.pending_batches >= self.accumulation_steps:
            self.apply_accumulated_gradients()
        return logs
