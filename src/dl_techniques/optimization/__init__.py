"""Optimizers and learning-rate schedules."""

from dl_techniques.optimization.adafactor import Adafactor
from dl_techniques.optimization.adamw import AdamW
from dl_techniques.optimization.component_optimizer import ComponentOptimizer, token_weight
from dl_techniques.optimization.layerwise import layerwise_components
from dl_techniques.optimization.learning_rate_schedules import (
    LinearSchedule,
    learning_rate_schedule_builder,
)
from dl_techniques.optimization.muon import Muon
from dl_techniques.optimization.optimizer_table import OptimizerRow, optimizer_table
from dl_techniques.optimization.optimizers import optimizer_builder

__all__ = [
    "Adafactor",
    "AdamW",
    "ComponentOptimizer",
    "LinearSchedule",
    "Muon",
    "OptimizerRow",
    "layerwise_components",
    "learning_rate_schedule_builder",
    "optimizer_builder",
    "optimizer_table",
    "token_weight",
]
