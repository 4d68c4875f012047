"""LoRA: two small trainable matrices beside each frozen kernel, through Keras' `enable_lora`.

LoRA: https://arxiv.org/abs/2106.09685.
"""

import dataclasses
import math
from collections.abc import Sequence

import keras
import numpy as np

from dl_techniques.models.layer_changes import (
    can_train,
    dense_layers,
    forget_programs,
    kernel_shape,
    matching_dense,
    nearest,
    quick_deletion,
    track_again,
)
from dl_techniques.optimization.component_map import component_pattern

ATTENTION = r"language_decoder/block_\d+/attention/(q_proj|k_proj|v_proj|o_proj)"
ADAPTERS = "lora_kernel_[ab]"


@dataclasses.dataclass(frozen=True)
class LoraSettings:
    """What `enable_lora` was told; a model keeps it in its attribute `lora`.

    Attributes:
        pattern: Which layers were asked for.
        rank: R of the matrices float[in, R] and float[R, out].
        alpha: The adapters' product counts alpha / rank times.
        opened: Paths of all other weights that trained since then, or still do.
    """

    pattern: str
    rank: int
    alpha: float
    opened: frozenset[str] = frozenset()


def enable_lora(
    model: keras.Model,
    pattern: str = ATTENTION,
    rank: int = 8,
    alpha: float | None = None,
    also_train: Sequence[str] = (),
) -> list[str]:
    """Give Dense layers adapters; these, and what `also_train` names, are all that trains then.

    The model's answers stay as they are: one of each pair of matrices begins with zeros. Compile
    the model afterwards: an optimizer that has state for other weights is taken off it.

    Args:
        model: A built model; its kernels may be quantized (`quantize_base`).
        pattern: Regular expression of whole parts of the layers' paths; default: the attention
            projections of the decoder.
        rank: Width of the matrices.
        alpha: The adapters' product counts alpha / rank times; default: rank.
        also_train: Patterns of paths of further weights, such as "modality_projection".

    Returns:
        The layers' paths.

    Raises:
        ValueError: if the pattern matches no Dense layer, or an embedding, if rank or alpha are no
            positive numbers or the rank is more than a kernel has, if a pattern of `also_train`
            matches nothing, or if the model has adapters. Nothing is changed then.
    """
    layers = matching_dense(model, pattern)
    alpha = rank if alpha is None else alpha
    _check(model, layers, rank, alpha)
    kernels = {id(layer._kernel) for layer in layers}
    others = [v for v in can_train(model) if id(v) not in kernels]
    opened = _matching_weights(others, also_train)
    add_adapters(model, layers, LoraSettings(pattern, rank, alpha))
    open_weights(model, [*opened, *adapters(model)])
    return [layer.path for layer in layers]


def train_only(model: keras.Model, patterns: Sequence[str]) -> list[str]:
    """Make the weights trainable whose paths match a pattern, and no others.

    Kernels with an adapter and quantized kernels stay frozen whatever matches them. Compile the
    model afterwards.

    Args:
        model: A built model, with adapters or without.
        patterns: Regular expressions of whole parts of paths; `ADAPTERS` stands for all adapters.

    Returns:
        The paths of the weights that train.

    Raises:
        ValueError: naming the patterns that match no such weight. Nothing is changed then.
    """
    opened = _matching_weights(can_train(model), patterns)
    open_weights(model, opened)
    return [variable.path for variable in opened]


def merge_lora(model: keras.Model) -> list[str]:
    """Add the adapters to the kernels and remove them.

    The model is then as if it had been trained without LoRA. No weight becomes trainable by it
    (`train_only` opens what you want); compile the model before it is trained or evaluated.

    Returns:
        The layers' paths.

    Raises:
        ValueError: if there are no adapters, or kernels are quantized: call `dequantize_base`
            first. Nothing is changed then.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError(f"{model.name} has no LoRA adapters to merge.")
    quantized = [layer.path for layer in layers if layer.quantization_mode]
    if quantized:
        raise ValueError(
            f"{len(quantized)} kernels with adapters are quantized, first {quantized[0]}: rounded "
            "again, they would lose some of what the adapters learned. Call "
            "dequantize_base(model) before merge_lora(model)."
        )
    with quick_deletion():
        for layer in layers:
            _merge(layer)
    model.lora = None
    forget_programs(model)
    return [layer.path for layer in layers]


def lora_layers(model: keras.Model) -> list[keras.layers.Dense]:
    """Return the layers with adapters."""
    return [layer for layer in dense_layers(model) if layer.lora_enabled]


def adapters(model: keras.Model) -> list[keras.Variable]:
    """Return all adapters: of each layer float[in, R] and float[R, out], in float32."""
    return [m for layer in lora_layers(model) for m in (layer.lora_kernel_a, layer.lora_kernel_b)]


def lora_settings(model: keras.Model) -> LoraSettings | None:
    """Return what `enable_lora` was told; None for a model without adapters."""
    return getattr(model, "lora", None)


def add_adapters(
    model: keras.Model, layers: list[keras.layers.Dense], settings: LoraSettings
) -> None:
    """Give layers that passed the checks their adapters."""
    for layer in layers:
        layer.enable_lora(settings.rank, settings.alpha)
        # Keras leaves the kernel among the weights that `layer.trainable = True` opens again.
        track_again(layer, layer._kernel, trainable=False)
    model.lora = settings
    forget_programs(model)


def open_weights(model: keras.Model, opened: Sequence[keras.Variable]) -> None:
    """Make exactly these weights trainable."""
    chosen = {id(variable) for variable in opened}
    # A frozen layer would hide its weights, whatever they say themselves. (On TensorFlow a setting
    # that a layer has already does not reach those inside of it.)
    for layer in model._flatten_layers():
        layer.trainable = True
    for variable in can_train(model):
        variable.trainable = id(variable) in chosen
    settings = lora_settings(model)
    if settings is not None:
        matrices = {id(matrix) for matrix in adapters(model)}
        paths = {variable.path for variable in opened if id(variable) not in matrices}
        model.lora = dataclasses.replace(settings, opened=settings.opened | paths)
    forget_programs(model)


def _check(model, layers, rank, alpha):
    enabled = lora_layers(model)
    if enabled:
        raise ValueError(
            f"{len(enabled)} layers of {model.name} have adapters, first {enabled[0].path}: one "
            "pattern may name several kinds of layers, (a|b). merge_lora(model) ends the old ones."
        )
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank={rank!r} must be a whole number of at least 1.")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ValueError(f"alpha={alpha!r} must be a positive number.")
    for layer in layers:
        shape = kernel_shape(layer)
        if rank > min(shape):
            raise ValueError(
                f"rank={rank} is more than the kernel of {layer.path}, {shape}, has: "
                f"{min(shape)} at most."
            )


def _matching_weights(variables, patterns) -> list[keras.Variable]:
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    compiled = {pattern: component_pattern(pattern) for pattern in patterns}
    unused = [p for p, c in compiled.items() if not any(c.search(v.path) for v in variables)]
    if unused:
        near = nearest(unused[0], [variable.path for variable in variables])
        raise ValueError(
            f"Patterns {unused} match no weight that can train (kernels with adapters and "
            f"quantized ones cannot). The nearest paths are {', '.join(near)}."
        )
    return [v for v in variables if any(c.search(v.path) for c in compiled.values())]


def _merge(layer):
    kernel = layer._kernel
    matrices = (layer.lora_kernel_a, layer.lora_kernel_b)
    a, b = (keras.ops.convert_to_numpy(matrix) for matrix in matrices)
    # By NumPy, as accelerators multiply in less than float32 by default.
    value = np.asarray(keras.ops.convert_to_numpy(kernel), "float32")
    value = value + np.float32(layer.lora_alpha / layer.lora_rank) * (a @ b)
    kernel.assign(value.astype(kernel.dtype))
    del layer.lora_kernel_a
    del layer.lora_kernel_b
    layer.lora_enabled, layer.lora_rank, layer.lora_alpha = False, None, None
    # In a new layer's order, which files and compiled programs may rely on.
    for variable in (kernel, layer.bias):
        if variable is not None:
            track_again(layer, variable, trainable=True)
