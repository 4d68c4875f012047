"""Learning-rate schedules from a config dict: linear warm-up, then cosine, linear or constant."""

import math

import keras
from keras import ops

from dl_techniques.optimization.config_checks import check_keys, number


@keras.saving.register_keras_serializable(package="dl_techniques")
class LinearSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to `learning_rate`, then a straight line to `alpha * learning_rate`.

    Step 0 gives `warmup_start_lr`, step `warmup_steps` gives `learning_rate`, step
    `warmup_steps + decay_steps` and every later one `alpha * learning_rate`; `alpha=1` is a
    constant rate.

    Args:
        learning_rate: rate after the warm-up.
        decay_steps: steps of the decay, counted after the warm-up.
        alpha: final rate as a fraction of `learning_rate`.
        warmup_steps: steps of the warm-up; 0 starts at `learning_rate`.
        warmup_start_lr: rate of step 0 when there is a warm-up.
        name: name of the schedule.
    """

    def __init__(
        self,
        learning_rate: float,
        decay_steps: int = 1,
        alpha: float = 1.0,
        warmup_steps: int = 0,
        warmup_start_lr: float = 0.0,
        name: str = "linear_schedule",
    ):
        super().__init__()
        self.learning_rate = learning_rate
        self.decay_steps = decay_steps
        self.alpha = alpha
        self.warmup_steps = warmup_steps
        self.warmup_start_lr = warmup_start_lr
        self.name = name

    def __call__(self, step):
        """Return the rate float32[] of the step that follows `step` completed ones."""
        step = ops.cast(step, "float32")
        done = ops.clip((step - self.warmup_steps) / self.decay_steps, 0.0, 1.0)
        rate = self.learning_rate * (1.0 - (1.0 - self.alpha) * self._share_of_decay(done))
        if not self.warmup_steps:
            return rate
        rise = self.learning_rate - self.warmup_start_lr
        warm = self.warmup_start_lr + rise * (step / self.warmup_steps)
        return ops.where(step < self.warmup_steps, warm, rate)

    def _share_of_decay(self, done):
        return done

    def get_config(self) -> dict:
        """Return the constructor arguments."""
        return {
            "learning_rate": self.learning_rate,
            "decay_steps": self.decay_steps,
            "alpha": self.alpha,
            "warmup_steps": self.warmup_steps,
            "warmup_start_lr": self.warmup_start_lr,
            "name": self.name,
        }


@keras.saving.register_keras_serializable(package="dl_techniques")
class CosineSchedule(LinearSchedule):
    """`LinearSchedule` with half a cosine wave in place of the straight line.

    The values are those of `keras.optimizers.schedules.CosineDecay`, whose `cond` JAX compiles
    anew, for seconds, whenever the rate is read outside a compiled step.
    """

    def _share_of_decay(self, done):
        return 0.5 * (1.0 - ops.cos(math.pi * done))


_WARMUP_KEYS = ("learning_rate", "warmup_steps", "warmup_start_lr")
_DECAY_KEYS = (*_WARMUP_KEYS, "decay_steps", "alpha")
_SCHEDULES = {
    "cosine_decay": (_DECAY_KEYS, CosineSchedule),
    "linear_decay": (_DECAY_KEYS, LinearSchedule),
    "constant": (_WARMUP_KEYS, LinearSchedule),
}


def learning_rate_schedule_builder(
    config: dict,
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Build a schedule; the config is not changed.

    Args:
        config: `type` is "cosine_decay", "linear_decay" or "constant"; `learning_rate` is the
            rate after the warm-up. Optional: `warmup_steps` (default 0) from `warmup_start_lr`
            (default 0.0). The two decays need `decay_steps`, counted AFTER the warm-up (the last
            rate is reached at step `warmup_steps + decay_steps`), and take `alpha` (default 0.0),
            the last rate as a fraction of `learning_rate`.

    Raises:
        ValueError: an unknown type or key, a missing key, or a number out of range.
    """
    keys, build = check_keys(config, _SCHEDULES, "learning-rate schedule")
    values = {
        "learning_rate": number(config, "learning_rate", above=0.0),
        "warmup_steps": number(config, "warmup_steps", default=0, at_least=0, whole=True),
        "warmup_start_lr": number(config, "warmup_start_lr", default=0.0, at_least=0.0),
    }
    if "decay_steps" in keys:
        values["decay_steps"] = number(config, "decay_steps", at_least=1, whole=True)
        values["alpha"] = number(config, "alpha", default=0.0, at_least=0.0)
    return build(**values)
