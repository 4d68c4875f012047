"""Stages: what a part of a training run learns, from which data, how fast and for how long."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import keras

from dl_techniques.losses.metrics import NextTokenAccuracy
from dl_techniques.losses.nanovlm_loss import NanoVLMLoss
from dl_techniques.optimization import (
    ComponentOptimizer,
    learning_rate_schedule_builder,
    optimizer_builder,
)
from dl_techniques.optimization.component_map import component_pattern
from dl_techniques.training.freezing import last_blocks, train_only


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run, which starts from the weights of the stage before it.

    Attributes:
        name: Names its checkpoints and its part of the log.
        steps: Updates of the weights.
        trainable: Component pattern (see `ComponentOptimizer`) -> peak learning rate. Everything
            else is frozen: it has no gradient and no optimizer state.
        data: What `StageTrainer` takes batches from: an iterable whose iterators have `get_state`
            and `set_state` (`TrainingStream`), or keyword arguments of `open_stream`.
        unfreeze_last_blocks: Of a component pattern that covers whole blocks, only so many of the
            last ones are trained, and nothing of it outside of blocks; pattern -> number.
        optimizer: See `optimizer_builder`.
        schedule: Of every learning rate: `warmup_share` of the steps, then "cosine" or "linear" to
            `alpha` times the peak, or "constant".
        accumulation_steps: Batches per update; each counts by its learned tokens.
        clipnorm: The largest norm of all gradients together, or None.
        label_smoothing: See `NanoVLMLoss`.
        chunk_size: Logits of so many tokens exist at a time; None: all. See `NanoVLMLoss`.

    Raises:
        ValueError: a value out of range; nothing to train.
    """

    name: str
    steps: int
    trainable: Mapping[str, float]
    data: Any = None
    unfreeze_last_blocks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    optimizer: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"type": "adamw", "weight_decay": 0.01}
    )
    schedule: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"type": "cosine", "warmup_share": 0.03, "alpha": 0.1}
    )
    accumulation_steps: int = 1
    clipnorm: float | None = 1.0
    label_smoothing: float = 0.0
    chunk_size: int | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(
                f"A stage's name must be of letters, digits, '_.-', got {self.name!r}."
            )
        if self.steps < 1 or self.accumulation_steps < 1:
            raise ValueError(f"Stage {self.name!r}: steps and accumulation_steps must be >= 1.")
        if not self.trainable:
            raise ValueError(f"Stage {self.name!r} trains nothing: name a component.")
        for pattern, rate in self.trainable.items():
            component_pattern(pattern)
            if not 0.0 < rate < math.inf:
                raise ValueError(f"Stage {self.name!r}: learning rate {rate} of {pattern!r}.")
        unknown = sorted(set(self.unfreeze_last_blocks) - set(self.trainable))
        if unknown:
            raise ValueError(
                f"Stage {self.name!r}: unfreeze_last_blocks names {unknown}, which are no patterns "
                f"of trainable, {sorted(self.trainable)}."
            )
        unknown = sorted(set(self.schedule) - {"type", "warmup_share", "alpha"})
        if unknown or self.schedule.get("type") not in ("cosine", "linear", "constant"):
            raise ValueError(
                f"Stage {self.name!r}: schedule {dict(self.schedule)} needs a type of 'cosine', "
                "'linear' or 'constant', and may have warmup_share and alpha."
            )

    def apply(self, model: keras.Model) -> None:
        """Freeze what is not trained, and compile the model for this stage.

        Raises:
            ValueError: a pattern matches no weight, or two patterns match the same one.
        """
        rates = {
            last_blocks(model, pattern, self.unfreeze_last_blocks[pattern])
            if pattern in self.unfreeze_last_blocks
            else pattern: rate
            for pattern, rate in self.trainable.items()
        }
        train_only(model, rates)
        components = {
            pattern: optimizer_builder(dict(self.optimizer), self._schedule(rate))
            for pattern, rate in rates.items()
        }
        model.compile(
            optimizer=ComponentOptimizer(components, self.clipnorm, self.accumulation_steps),
            loss=NanoVLMLoss(label_smoothing=self.label_smoothing, chunk_size=self.chunk_size),
            metrics=[NextTokenAccuracy(name="accuracy")],
        )

    def _schedule(self, rate: float):
        warmup = round(self.schedule.get("warmup_share", 0.0) * self.steps)
        config = {"type": "constant", "warmup_steps": warmup, "learning_rate": rate}
        if self.schedule["type"] != "constant":
            config |= {
                "type": f"{self.schedule['type']}_decay",
                "decay_steps": max(1, self.steps - warmup),
                "alpha": self.schedule.get("alpha", 0.0),
            }
        return learning_rate_schedule_builder(config)
