"""StepMeter: what a step tells of speed and memory."""

import keras
import numpy as np

from dl_techniques.training.device_peaks import peak_flops_per_second
from dl_techniques.training.flops import model_flops
from dl_techniques.utils.device_memory import gpu_peak_counter
from dl_techniques.utils.resident_memory import peak_resident_bytes


class StepMeter:
    """Counts operations and memory of the steps of one stage.

    Args:
        model: A built `VisionLanguageModel` in which the stage's parts are frozen.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._flops: dict[tuple, int] = {}
        self._peak_bytes = gpu_peak_counter()[0] or peak_resident_bytes
        peak = peak_flops_per_second(model.dtype_policy.name)
        self._peak_flops = None if peak is None else peak * _device_count()

    def flops(self, inputs: dict) -> int:
        """Return the model's floating-point operations for a batch; see `model_flops`."""
        shapes = {
            name: np.shape(inputs[name])
            for name in ("text_tokens", "images")
            if inputs.get(name) is not None
        }
        key = tuple(shapes.items())
        if key not in self._flops:
            self._flops[key] = model_flops(self._model, shapes)
        return self._flops[key]

    def values(self, flops: int, seconds: float) -> dict[str, float]:
        """Return the numbers of a step to be logged.

        Args:
            flops: Of all its batches.
            seconds: How long it took.
        """
        values = {
            "speed/model_tflops_per_second": flops / seconds / 1e12,
            "speed/peak_memory_mb": self._peak_bytes() / 1e6,
        }
        if self._peak_flops is not None:
            values["speed/mfu"] = flops / seconds / self._peak_flops
        return values


def _device_count() -> int:
    distribution = keras.distribution.distribution() if keras.backend.backend() == "jax" else None
    return 1 if distribution is None else int(np.prod(distribution.device_mesh.shape))
