"""Frozen kernels in 8 or 4 bits, for adapters to be trained on them (QLoRA).

QLoRA: https://arxiv.org/abs/2305.14314.
"""

import keras
import numpy as np

from dl_techniques.layers.dense import Dense
from dl_techniques.models.layer_changes import (
    dense_layers,
    forget_programs,
    matching_dense,
    quick_deletion,
    track_again,
)
from dl_techniques.models.lora import lora_layers

BLOCKS = r"language_decoder/block_\d+"
BLOCK_SIZE = 128

# Weights alone are rounded: rounding activations too doubles the error, and merged adapters would
# answer otherwise.
_CONFIGS = {
    "int8": lambda: keras.quantizers.Int8QuantizationConfig(activation_quantizer=None),
    "int4": lambda: keras.quantizers.Int4QuantizationConfig(block_size=BLOCK_SIZE),
}
_REFUSED = {
    "float8": "Keras 3.15 has no LoRA on it",
    "gptq": "Keras 3.15 has no LoRA on it and reads it back wrongly (keras#23321)",
    "awq": "Keras 3.15 reads it back wrongly (keras#23321)",
}


def quantize_base(model: keras.Model, mode: str = "int8", pattern: str = BLOCKS) -> list[str]:
    """Round the kernels of Dense layers to a fourth or an eighth of float32's bytes.

    They are frozen from then on; `enable_lora` gives them adapters. Embeddings and the head stay
    as they are. Neither presets nor `.keras` files hold such kernels: save the adapters, and load
    them onto the same base, quantized the same way.

    Args:
        model: A built model.
        mode: "int8": one scale per output channel (an error of 0.4% of the channel's largest
            weight); "int4": a scale and a zero point per 128 input channels (6%).
        pattern: Regular expression of whole parts of the layers' paths; default: all of the
            decoder's blocks.

    Returns:
        The layers' paths.

    Raises:
        ValueError: for another mode, a pattern that matches no Dense layer or an embedding, layers
            that are quantized, a model with adapters, or int8 in float16. Nothing is changed then.
    """
    if mode in _REFUSED:
        raise ValueError(f"mode={mode!r} is refused: {_REFUSED[mode]}. Use one of {[*_CONFIGS]}.")
    if mode not in _CONFIGS:
        raise ValueError(f"mode={mode!r} must be one of {[*_CONFIGS]}.")
    layers = matching_dense(model, pattern)
    _check(model, layers, mode)
    chosen = {id(layer) for layer in layers}
    with quick_deletion():
        model.quantize(config=_CONFIGS[mode](), filters=lambda layer: id(layer) in chosen)
    forget_programs(model)
    return [layer.path for layer in layers]


def dequantize_base(model: keras.Model) -> list[str]:
    """Make quantized kernels floats again, with the values that rounding left them.

    Adapters stay. With `merge_lora` after it, the model saves as a preset; it answers as the
    quantized one did.

    Returns:
        The layers' paths.

    Raises:
        ValueError: if nothing is quantized by `quantize_base`. Nothing is changed then.
    """
    layers = [layer for layer in dense_layers(model) if layer.quantization_mode in _CONFIGS]
    if not layers:
        raise ValueError(f"{model.name} has no quantized kernels.")
    with quick_deletion():
        for layer in layers:
            _dequantize(layer)
    forget_programs(model)
    return [layer.path for layer in layers]


def _check(model, layers, mode):
    adapted = lora_layers(model)
    if adapted:
        raise ValueError(
            f"{model.name} has LoRA adapters, first on {adapted[0].path}: quantize_base comes "
            "before enable_lora."
        )
    for layer in layers:
        if layer.quantization_mode:
            raise ValueError(
                f"{layer.path} is quantized ({layer.quantization_mode}): dequantize_base first."
            )
        if type(layer) not in (keras.layers.Dense, Dense):
            raise ValueError(
                f"{layer.path} is a {type(layer).__name__}: only keras.layers.Dense is quantized."
            )
        if mode == "int8" and layer.compute_dtype == "float16":
            raise ValueError(
                f"{layer.path} computes in float16, in which products with 8-bit kernels overflow: "
                "use bfloat16, or mode='int4'."
            )


def _dequantize(layer):
    kernel = _float_kernel(layer)
    for name in ("_kernel", "kernel_scale", "kernel_zero", "g_idx"):
        if hasattr(layer, name):
            delattr(layer, name)
    # "int8_from_float32" was made from "float32".
    layer.dtype_policy = layer.dtype_policy.name.partition("_from_")[2]
    layer._is_quantized, layer.quantization_config, layer.inputs_quantizer = False, None, None
    layer._tracker.unlock()
    layer._kernel = layer.add_weight(name="kernel", shape=kernel.shape, initializer="zeros")
    layer._tracker.lock()
    layer._kernel.assign(kernel.astype(layer._kernel.dtype))
    layer._kernel.trainable = False
    if layer.lora_enabled:
        track_again(layer, layer._kernel, trainable=False)
    elif layer.bias is not None:
        track_again(layer, layer.bias, trainable=True)


def _float_kernel(layer) -> np.ndarray:
    """Return float32[in, out]."""
    kernel, scale = _array(layer._kernel), _array(layer.kernel_scale)
    if layer.quantization_mode == "int8":
        return kernel / scale
    kernel = keras.quantizers.unpack_int4(layer._kernel.value, layer.units, axis=-1)
    group = _array(layer.g_idx).astype("int32")
    return (_array(kernel) - _array(layer.kernel_zero)[group]) * scale[group]


def _array(x) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(x), "float32")
