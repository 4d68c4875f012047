"""What a training step will take, before anything is allocated: memory per device and work.

Weights, gradients and optimizer state are not estimated but counted: on a model without weights,
whose optimizer is built for it in the same way. Activations follow the step's structure, see
`activation_memory`; work is counted by `flops`.
"""

import dataclasses
import math
from collections.abc import Collection

import keras

from dl_techniques.models.lora import train_only
from dl_techniques.optimization import ComponentOptimizer, optimizer_builder
from dl_techniques.training.activation_memory import (
    Numerics,
    item_bytes,
    kept_bytes,
    peak_bytes,
)
from dl_techniques.training.batch_sizes import batch_sizes, row_tokens
from dl_techniques.training.device_peaks import device_name
from dl_techniques.training.flops import step_products
from dl_techniques.training.planned_layout import PlannedLayout
from dl_techniques.training.skeletons import PARTS, make_skeleton, without_values
from dl_techniques.training.step_segments import StepSegments

PRECISIONS = ("float32", "bfloat16", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """What one training step takes; `str()` gives a table.

    Memory is in bytes on one device, the fullest where they differ.

    Attributes:
        title: The question, in one line.
        parameters: Weights of the model, on all devices together.
        trained: Those of them that are trained.
        weights: Bytes of the weights.
        gradients: Bytes of all gradients together.
        optimizer: Bytes of moments, gradient sums, averages.
        batch: Bytes of pixels, ids and labels.
        activations: Bytes kept when the backward pass begins.
        peak: The most that exists at one time: weights, optimizer state and batch, and of
            activations and gradients, of which one shrinks while the other grows, the largest sum.
            What the process itself takes (Python, libraries, compiled programs) comes on top.
        forward: Floating-point operations of the forward pass, on all devices together.
        backward: Those of the backward pass; see `model_flops`.
        tokens: Positions in the decoder, text and images.
        devices: How many devices share the work.
    """

    title: str
    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    batch: int
    activations: int
    peak: int
    forward: int
    backward: int
    tokens: int
    devices: int

    @property
    def flops(self) -> int:
        """Floating-point operations of a step."""
        return self.forward + self.backward

    def seconds(self, peak_tflops: float, mfu: float = 1.0) -> float:
        """Return the time of a step.

        Args:
            peak_tflops: What one device can do at most, in TFLOP/s.
            mfu: Share of it that the model makes use of.

        Raises:
            ValueError: a peak that is not positive, or a share outside (0, 1].
        """
        if not peak_tflops > 0 or not 0 < mfu <= 1:
            raise ValueError(
                f"peak_tflops={peak_tflops} must be positive and mfu={mfu} lie in (0, 1]."
            )
        return self.flops / (self.devices * peak_tflops * 1e12 * mfu)

    def __str__(self) -> str:
        lines = [self.title, f"trained {self.trained:,} of {self.parameters:,} parameters"]
        lines.append(f"{'memory per device':<22}{'MB':>14}")
        names = ("weights", "gradients", "optimizer", "batch", "activations", "peak")
        lines += [f"{name:<22}{getattr(self, name) / 1e6:>14,.1f}" for name in names]
        lines.append(f"{'work of a step':<22}{'TFLOP':>14}{'GFLOP a token':>16}")
        for name in ("forward", "backward", "flops"):
            flops = getattr(self, name)
            label = "total" if name == "flops" else name
            lines.append(f"{label:<22}{flops / 1e12:>14,.3f}{flops / self.tokens / 1e9:>16,.3f}")
        return "\n".join(lines)


def plan_training(
    model: str | dict,
    batch_size: int = 8,
    length: int = 128,
    images: int = 1,
    precision: str = "float32",
    optimizer: str | dict = "adamw",
    ema_decay: float | None = None,
    trainable: Collection[str] | None = None,
    chunk_size: int | None = None,
    remat: bool | None = None,
    accumulation_steps: int = 1,
    layout: str = "single",
    devices: int = 1,
    model_parallel: int = 1,
    device: str | None = None,
    flash_attention: bool | None = None,
) -> TrainingPlan:
    """Return the plan of a training step with `ComponentOptimizer` and `NanoVLMLoss`.

    Args:
        model: See `model_config`.
        batch_size: Rows of a batch, on all devices together.
        length: Text tokens of a row, placeholders included. Prepended images come on top.
        images: Images of a row.
        precision: A dtype policy of `PRECISIONS`.
        optimizer: A type of `optimizer_builder`, or its config.
        ema_decay: See `ComponentOptimizer`.
        trainable: Component patterns of what is trained; None: everything.
        chunk_size: Logits of so many tokens exist at a time; None: all.
        remat: Whether blocks are computed again in the backward pass; None: as the sizes say.
        accumulation_steps: Batches of an update; a step is one batch.
        layout: See `make_distribution`.
        devices: How many; they need not be there.
        model_parallel: See `make_distribution`.
        device: "cpu" or "gpu"; None: what the backend computes on here. On a CPU, XLA computes
            reduced precision in float32.
        flash_attention: Whether attention keeps no [tokens, tokens] weights; None: as the backend
            does (PyTorch; JAX on a GPU in reduced precision). A decoder with dropout always does.

    Raises:
        ValueError: an unknown model, precision, layout or optimizer; a number out of range;
            patterns that match nothing; rows or devices that do not divide.
    """
    _check(batch_size, length, images, precision, chunk_size, accumulation_steps, device)
    skeleton = make_skeleton(model, precision, remat)
    images = images if skeleton.vision_encoder is not None else 0
    # Weights are laid out as they are made, before some are frozen.
    placed = PlannedLayout(skeleton, layout, devices, model_parallel)
    if trainable is not None:
        without_values(lambda: train_only(skeleton, trainable))
    state = _optimizer_variables(
        skeleton, optimizer, ema_decay, trainable, accumulation_steps, precision
    )
    rows = placed.rows(batch_size)
    sizes = batch_sizes(skeleton, _shapes(skeleton, rows, length, images))
    _check_length(skeleton, sizes, length, images)
    device = device or ("cpu" if device_name() == "cpu" else "gpu")
    how = _numerics(precision, device, flash_attention, chunk_size, model_parallel)
    segments = StepSegments(skeleton, sizes, placed, how).all()
    work = step_products(skeleton, _shapes(skeleton, batch_size, length, images))
    weights, held = placed.bytes(skeleton.weights), placed.bytes(state)
    batch = 4 * (sizes.images * sizes.pixels + 2 * sizes.rows * sizes.text)
    return TrainingPlan(
        title=_title(model, batch_size, length, images, precision, optimizer, placed),
        parameters=_count(skeleton.weights),
        trained=_count(skeleton.trainable_variables),
        weights=weights,
        gradients=placed.bytes(skeleton.trainable_variables),
        optimizer=held,
        batch=batch,
        activations=kept_bytes(segments),
        peak=weights + held + batch + peak_bytes(segments),
        forward=work.forward,
        backward=work.backward,
        tokens=batch_size * sizes.length,
        devices=devices,
    )


def _check(batch_size, length, images, precision, chunk_size, accumulation_steps, device):
    least = {"batch_size": 1, "length": 1, "images": 0, "accumulation_steps": 1, "chunk_size": 1}
    given = {
        "batch_size": batch_size,
        "length": length,
        "images": images,
        "accumulation_steps": accumulation_steps,
        "chunk_size": 1 if chunk_size is None else chunk_size,
    }
    wrong = [f"{name}={given[name]}" for name in least if given[name] < least[name]]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: must be at least 1 (images: 0).")
    if precision not in PRECISIONS:
        raise ValueError(f"Unknown precision {precision!r}: choose from {', '.join(PRECISIONS)}.")
    if device not in (None, "cpu", "gpu"):
        raise ValueError(f"device={device!r} must be 'cpu' or 'gpu'.")


def _check_length(skeleton, sizes, length, images):
    needed = row_tokens(skeleton, images, sizes.image_tokens)
    if length < needed:
        raise ValueError(f"{images} images need {needed} of the row's tokens, length={length}.")
    longest = skeleton.language_decoder.max_positions
    if sizes.length > longest:
        raise ValueError(f"{sizes.length} positions are more than max_positions={longest}.")


def _shapes(skeleton, rows, length, images):
    shapes = {"text_tokens": (rows, length)}
    if images:
        shapes["images"] = (rows, images, *skeleton.image_size, 3)
    return shapes


def _optimizer_variables(skeleton, optimizer, ema_decay, trainable, accumulation_steps, precision):
    """Return the variables of the optimizer as it is built for training, without values."""
    config = {"type": optimizer} if isinstance(optimizer, str) else dict(optimizer)
    patterns = trainable or [name for name in PARTS if getattr(skeleton, name) is not None]
    components = {pattern: optimizer_builder(config, 1e-4) for pattern in patterns}
    outer = built = ComponentOptimizer(components, 1.0, accumulation_steps, ema_decay)
    if precision == "mixed_float16":
        outer = keras.optimizers.LossScaleOptimizer(built)
    for each in (outer, built, *components.values()):
        # On TensorFlow Keras knows a variable by its value, and would make that for it.
        each._var_key = id
    without_values(lambda: outer.build(skeleton.trainable_variables))
    return outer.variables


def _numerics(precision, device, flash_attention, chunk_size, model_parallel):
    """Return how the backend stores numbers on a device."""
    backend = keras.backend.backend()
    xla_on_cpu = device == "cpu" and backend != "torch"
    if flash_attention is None:
        reduced = precision != "float32"
        flash_attention = backend == "torch" or (backend == "jax" and device == "gpu" and reduced)
    dtype = "float32" if xla_on_cpu else keras.DTypePolicy(precision).compute_dtype
    return Numerics(
        item=item_bytes(dtype),
        keeps_scores=not flash_attention,
        remat_saves=not xla_on_cpu,
        chunk_size=chunk_size,
        model_parallel=model_parallel,
    )


def _count(variables):
    return sum(math.prod(v.shape) for v in variables)


def _title(model, batch_size, length, images, precision, optimizer, placed):
    name = model if isinstance(model, str) else "model"
    kind = optimizer if isinstance(optimizer, str) else optimizer["type"]
    return (
        f"{name}, {precision}, {kind}, {batch_size} rows of {length} tokens and {images} images, "
        f"{placed}"
    )
