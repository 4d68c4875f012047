"""Optimizers from a config dict."""

import keras

from dl_techniques.optimization.adafactor import Adafactor
from dl_techniques.optimization.adamw import AdamW
from dl_techniques.optimization.config_checks import check_keys, number
from dl_techniques.optimization.muon import Muon

_CLIPPING = {
    "gradient_clipping_by_norm": "global_clipnorm",
    "gradient_clipping_by_value": "clipvalue",
}


def _muon(**settings):
    # Muon's own decay spares nothing that it leaves to Adam: norms, biases and embeddings.
    return Muon(**{"weight_decay": None, **settings}, adam_weight_decay=None)


def _adam(**settings):
    # Keras' Adam never moves a bfloat16 weight, and is slower on PyTorch.
    return AdamW(**settings, weight_decay=0.0)


_OPTIMIZERS = {
    "muon": (("momentum", "weight_decay", "adam_lr_ratio", *_CLIPPING), _muon),
    "adamw": (("beta_1", "beta_2", "epsilon", "weight_decay", *_CLIPPING), AdamW),
    "adam": (("beta_1", "beta_2", "epsilon", *_CLIPPING), _adam),
    "sgd": (("momentum", *_CLIPPING), keras.optimizers.SGD),
    "lion": (("beta_1", "beta_2", *_CLIPPING), keras.optimizers.Lion),
    "adafactor": (("beta_2_decay", *_CLIPPING), Adafactor),
}


def optimizer_builder(
    config: dict, schedule: keras.optimizers.schedules.LearningRateSchedule | float
) -> keras.optimizers.Optimizer:
    """Build an optimizer; keys that are absent have Keras' defaults.

    Args:
        config: `type` is "adamw" (`beta_1`, `beta_2`, `epsilon`, `weight_decay`), "adam"
            (`beta_1`, `beta_2`, `epsilon`), "sgd" (`momentum`), "lion" (`beta_1`, `beta_2`),
            "adafactor" (`beta_2_decay`) or "muon" (`momentum`, `weight_decay`, and `adam_lr_ratio`
            for what Muon leaves to Adam: embeddings and everything that is no matrix).
            Each takes `gradient_clipping_by_norm` (the norm of all gradients together) or
            `gradient_clipping_by_value`. An optimizer that becomes a part of a
            `ComponentOptimizer` is clipped there.
        schedule: learning-rate schedule or constant learning rate.

    Raises:
        ValueError: an unknown type or key, a value that is no number, or both ways of clipping.
    """
    _, build = check_keys(config, _OPTIMIZERS, "optimizer")
    if all(key in config for key in _CLIPPING):
        raise ValueError(f"Set only one of {sorted(_CLIPPING)} in {config}.")
    settings = {_CLIPPING.get(k, k): number(config, k) for k in config if k != "type"}
    is_schedule = isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule)
    return build(learning_rate=schedule if is_schedule else float(schedule), **settings)
