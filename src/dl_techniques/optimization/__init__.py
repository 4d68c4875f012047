"""Optimizers and learning-rate schedules."""

from dl_techniques.optimization.adamw import AdamW
from dl_techniques.optimization.component_optimizer import ComponentOptimizer, token_weight
from dl_techniques.optimization.learning_rate_schedules import (
    LinearSchedule,
    learning_rate_schedule_builder,
)
from dl_techniques.optimization.optimizers import optimizer_builder

__all__ = [
    "AdamW",
    "ComponentOptimizer",
    "LinearSchedule",
    "learning_rate_schedule_builder",
    "optimizer_builder",
    "token_weight",
]
