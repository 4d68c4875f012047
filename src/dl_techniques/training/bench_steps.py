"""Training steps on random batches, their times and their peak memory."""

import time

import keras
import numpy as np

from dl_techniques.losses.metrics import NextTokenAccuracy
from dl_techniques.losses.nanovlm_loss import NanoVLMLoss
from dl_techniques.models.lora import train_only
from dl_techniques.optimization import ComponentOptimizer, optimizer_builder
from dl_techniques.training.batch_sizes import row_tokens
from dl_techniques.training.bench import BenchSettings
from dl_techniques.training.planned_layout import size_in_bytes
from dl_techniques.training.skeletons import PARTS, model_config, with_remat
from dl_techniques.utils.device_memory import gpu_peak_counter
from dl_techniques.utils.resident_memory import (
    peak_resident_bytes,
    reset_peak,
    resident_bytes,
)


class StepsToMeasure:
    """A model that is trained on one random batch, again and again.

    Every text token but the images' placeholders is learned.

    Attributes:
        model: The compiled model.
        learned_tokens: Learned tokens of a batch.

    Raises:
        ValueError: a model without images.
    """

    def __init__(self, settings: BenchSettings):
        self.settings = settings
        keras.utils.set_random_seed(0)
        family, config = model_config(settings.model)
        if "vision_config" not in config:
            raise ValueError(f"{settings.model} has no vision encoder: only VLMs are measured.")
        keras.config.set_dtype_policy(settings.precision)
        self.model = family(**with_remat(config, settings.remat))
        if settings.trainable is not None:
            train_only(self.model, settings.trainable)
        optimizers = {
            pattern: optimizer_builder({"type": settings.optimizer}, 1e-5)
            for pattern in settings.trainable or PARTS
        }
        self.model.compile(
            ComponentOptimizer(optimizers, 1.0),
            NanoVLMLoss(chunk_size=settings.chunk_size),
            metrics=[NextTokenAccuracy(name="accuracy")],
        )
        self.inputs, self.labels = self._batch()
        self.learned_tokens = int(np.sum(self.labels[:, 1:] != -100))

    def _batch(self):
        """Return inputs and labels int32[B, S]; the images' places come first in each row."""
        settings, model = self.settings, self.model
        rng = np.random.default_rng(0)
        shape = (settings.batch_size, settings.length)
        tags = getattr(model, "tile_tag_ids", None) or ()
        special = [*model.image_mark_ids, *tags]
        ids = rng.integers(0, model.vocab_size, shape).astype("int32")
        ids[np.isin(ids, special)] = next(i for i in range(model.vocab_size) if i not in special)
        labels, inputs = ids.copy(), {"text_tokens": ids}
        used = row_tokens(model, settings.images, model.tokens_per_image)
        labels[:, :used] = -100
        if settings.images:
            size = (settings.batch_size, settings.images, *model.image_size, 3)
            inputs["images"] = rng.uniform(-1.0, 1.0, size).astype("float32")
        if used:
            inputs |= self._places(ids, used)
        return inputs, labels

    def _places(self, ids, used) -> dict:
        """Write the images' placeholders and tags into the ids; return further inputs."""
        model, images = self.model, self.settings.images
        if model.image_token_id is not None:
            ids[:, :used] = model.image_token_id
        if getattr(model, "architecture", "decoder") == "decoder":
            return {}
        # One token a tag; behind the last one a hybrid model has the thumbnail's placeholders.
        if model.tile_tag_ids is not None:
            ids[:, :images] = np.resize(model.tile_tag_ids, images)
            return {}
        image_tags = np.zeros_like(ids)
        image_tags[:, :images] = np.arange(1, images + 1)
        ids[:, :images] = 0 if model.image_token_id != 0 else 1
        return {"image_tags": image_tags}

    def step(self) -> float:
        """Do one step; return its time in s."""
        began = time.perf_counter()
        self.model.train_on_batch(self.inputs, self.labels, return_dict=True)  # As trainers do.
        return time.perf_counter() - began

    def run(self) -> dict:
        """Return `first_seconds`, `seconds` of later steps, and `peak` bytes with its `source`."""
        settings = self.settings
        first = self.step()
        meter = PeakMeter(self.model)
        for _ in range(settings.warm_up - 1):
            self.step()
        seconds = [self.step() for _ in range(settings.steps)]
        return {
            "first_seconds": first,
            "seconds": seconds,
            "peak": meter.peak(),
            "source": meter.source,
        }


class PeakMeter:
    """The most memory that steps take, from now on.

    On a GPU it is what the backend's allocator counts (JAX: since the process began). On a CPU, the
    variables' bytes and what the process has resident beyond its state between two steps.

    Args:
        model: A model that has done a step.

    Attributes:
        source: What is read, in words.
    """

    def __init__(self, model):
        self._counter, self.source = gpu_peak_counter()
        if self._counter is None:
            variables = [*model.variables, *model.optimizer.variables]
            # The metrics of compile are among the variables of both.
            unique = {id(v): v for v in variables}.values()
            self._held = sum(size_in_bytes(v) for v in unique)
            reset_peak()
            self._between = resident_bytes()
            self.source = "variables + growth of resident memory in a step"

    def peak(self) -> int:
        """Return the bytes."""
        if self._counter is not None:
            return int(self._counter())
        return self._held + peak_resident_bytes() - self._between
