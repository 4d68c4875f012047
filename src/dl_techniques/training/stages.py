"""Stages: what a part of a training run learns, from which data, how fast and for how long."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

import keras

from dl_techniques.losses.metrics import NextTokenAccuracy
from dl_techniques.losses.nanovlm_loss import NanoVLMLoss
from dl_techniques.models.lora import enable_lora, lora_layers, train_only
from dl_techniques.models.objectives import Objective
from dl_techniques.models.quantization import quantize_base
from dl_techniques.optimization import (
    ComponentOptimizer,
    learning_rate_schedule_builder,
    optimizer_builder,
)
from dl_techniques.optimization.component_map import component_pattern
from dl_techniques.optimization.layerwise import layerwise_components
from dl_techniques.training.freezing import last_blocks

_SCHEDULES = {"cosine": "cosine_decay", "linear": "linear_decay", "constant": "constant"}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run, which starts from the weights of the stage before it.

    Attributes:
        name: Names its checkpoints and its part of the log.
        steps: Updates of the weights; the most of them, where the data has an end.
        trainable: Component pattern (see `ComponentOptimizer`) -> peak learning rate. Everything
            else is frozen: it has no gradient and no optimizer state. `models.lora.ADAPTERS`
            stands for all adapters.
        data: What `StageTrainer` takes batches from: an iterable whose iterators have `get_state`
            and `set_state`, such as `TrainingStream` and `EpochStream`. Where its `ends` is true,
            its last whole update ends the stage; else data that runs out is an error.
        unfreeze_last_blocks: Of a component pattern that covers whole blocks, only so many of the
            last ones are trained, and nothing of it outside of blocks; pattern -> number.
        layer_decay: Pattern of a part with blocks -> factor of the learning rate from each block to
            the one below it; see `layerwise_components`.
        optimizer: See `optimizer_builder`.
        schedule: Of every learning rate: `warmup_share` of the steps, then "cosine" or "linear" to
            `alpha` times the peak, or "constant".
        planned_steps: About how many of the steps the data has; the schedule spans these, and stays
            at its end in steps beyond. None: all.
        accumulation_steps: Batches per update; each counts by its learned tokens.
        clipnorm: The largest norm of all gradients together, or None.
        ema_decay: Of averages of the trained weights, which are evaluated in place of them, and are
            what the stage ends with; None: no averages.
        label_smoothing: See `NanoVLMLoss`.
        chunk_size: Logits of so many tokens exist at a time; None: all. See `NanoVLMLoss`.
        objective: Arguments of `Objective`; None: the next-token loss alone.
        lora: Arguments of `enable_lora`, and optionally "quantize", the mode of `quantize_base`;
            None: no new adapters.

    Raises:
        ValueError: a value out of range; nothing to train.
    """

    name: str
    steps: int
    trainable: Mapping[str, float]
    data: Any = None
    unfreeze_last_blocks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    layer_decay: Mapping[str, float] = dataclasses.field(default_factory=dict)
    optimizer: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"type": "adamw", "weight_decay": 0.01}
    )
    schedule: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"type": "cosine", "warmup_share": 0.03, "alpha": 0.1}
    )
    planned_steps: int | None = None
    accumulation_steps: int = 1
    clipnorm: float | None = 1.0
    ema_decay: float | None = None
    label_smoothing: float = 0.0
    chunk_size: int | None = None
    objective: Mapping[str, Any] | None = None
    lora: Mapping[str, Any] | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(
                f"A stage's name must be of letters, digits, '_.-', got {self.name!r}."
            )
        if self.steps < 1 or self.accumulation_steps < 1:
            raise ValueError(f"Stage {self.name!r}: steps and accumulation_steps must be >= 1.")
        if not 1 <= self.expected_steps <= self.steps:
            raise ValueError(
                f"Stage {self.name!r}: planned_steps={self.planned_steps} must be at least 1 and "
                f"at most steps={self.steps}."
            )
        if not self.trainable:
            raise ValueError(f"Stage {self.name!r} trains nothing: name a component.")
        for pattern, rate in self.trainable.items():
            component_pattern(pattern)
            if not _is_number(rate) or not 0.0 < rate < math.inf:
                raise ValueError(
                    f"Stage {self.name!r}: learning rate {rate!r} of {pattern!r} must be a number "
                    "above 0; what is left out is frozen."
                )
        for field in ("unfreeze_last_blocks", "layer_decay"):
            for pattern, value in getattr(self, field).items():
                if not _is_number(value):
                    raise ValueError(
                        f"Stage {self.name!r}: {field} {value!r} of {pattern!r} must be a number."
                    )
            unknown = sorted(set(getattr(self, field)) - set(self.trainable))
            if unknown:
                raise ValueError(
                    f"Stage {self.name!r}: {field} names {unknown}, which are no patterns of "
                    f"trainable, {sorted(self.trainable)}."
                )
        unknown = sorted(set(self.schedule) - {"type", "warmup_share", "alpha"})
        if unknown or self.schedule.get("type") not in _SCHEDULES:
            raise ValueError(
                f"Stage {self.name!r}: schedule {dict(self.schedule)} needs a type of "
                f"{list(_SCHEDULES)}, and may have warmup_share and alpha."
            )
        # What is wrong with these is known before the data is read.
        self._optimizer(max(self.trainable.values()))
        NanoVLMLoss(label_smoothing=self.label_smoothing, chunk_size=self.chunk_size)
        self._objective()

    @property
    def expected_steps(self) -> int:
        """How many steps the stage will have, as far as is known before."""
        return self.steps if self.planned_steps is None else self.planned_steps

    def check_patterns(self, model: keras.Model) -> None:
        """Make sure that all patterns match weights of a model, which may be without values.

        Raises:
            ValueError: naming the pattern that does not.
        """
        paths = [weight.path for weight in model.weights]
        for pattern in self.trainable:
            adapted = self.lora is not None and "lora_kernel" in pattern
            if not adapted and not any(map(component_pattern(pattern).search, paths)):
                raise ValueError(
                    f"Stage {self.name!r}: {pattern!r} matches no weight. Paths are such as "
                    f"{', '.join(paths[:: max(1, len(paths) // 4)])}."
                )
        for pattern, count in self.unfreeze_last_blocks.items():
            last_blocks(model, pattern, count)

    def add_adapters(self, model: keras.Model) -> None:
        """Give the model the adapters that this stage is about, unless it has adapters.

        Raises:
            ValueError: see `enable_lora` and `quantize_base`.
        """
        if self.lora is None or lora_layers(model):
            return
        settings = dict(self.lora)
        mode = settings.pop("quantize", None)
        if mode is not None:
            quantize_base(model, mode)
        enable_lora(model, **settings)

    def apply(self, model: keras.Model) -> None:
        """Freeze what is not trained, and compile the model for this stage.

        Raises:
            ValueError: a pattern matches no weight, or two patterns match the same one.
        """
        self.add_adapters(model)
        patterns = {
            last_blocks(model, pattern, self.unfreeze_last_blocks[pattern])
            if pattern in self.unfreeze_last_blocks
            else pattern: pattern
            for pattern in self.trainable
        }
        train_only(model, list(patterns))
        model.objective = self._objective()
        model.source_names = list(getattr(self.data, "sources", ()))
        model.compile(
            optimizer=ComponentOptimizer(
                self._components(model, patterns),
                self.clipnorm,
                self.accumulation_steps,
                self.ema_decay,
            ),
            loss=NanoVLMLoss(label_smoothing=self.label_smoothing, chunk_size=self.chunk_size),
            metrics=[NextTokenAccuracy(name="accuracy")],
        )
        model.optimizer.build(model.trainable_variables)

    def _objective(self) -> Objective | None:
        return None if self.objective is None else Objective(**self.objective)

    def _components(self, model, patterns) -> dict[str, keras.optimizers.Optimizer]:
        """Return an optimizer for each pattern of what is trained, or for each of its blocks."""
        paths = [variable.path for variable in model.trainable_variables]
        components = {}
        for pattern, named in patterns.items():
            rate = self.trainable[named]
            if named in self.layer_decay:
                decay = self.layer_decay[named]
                components |= layerwise_components(paths, named, rate, decay, self._optimizer)
            else:
                components[pattern] = self._optimizer(rate)
        return components

    def _optimizer(self, rate: float) -> keras.optimizers.Optimizer:
        warmup = round(self.schedule.get("warmup_share", 0.0) * self.expected_steps)
        config = {
            "type": _SCHEDULES[self.schedule["type"]],
            "warmup_steps": warmup,
            "learning_rate": rate,
        }
        if self.schedule["type"] != "constant":
            config["decay_steps"] = max(1, self.expected_steps - warmup)
            config["alpha"] = self.schedule.get("alpha", 0.0)
        schedule = learning_rate_schedule_builder(config)
        return optimizer_builder(dict(self.optimizer), schedule)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
