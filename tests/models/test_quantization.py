import keras
import numpy as np
import pytest
from adapted_models import assert_same, fit, move, text_batch, values
from tiny_models import logits, mixed_batch, numpy, tiny_nanovlm

from dl_techniques.models.layer_changes import dense_layers
from dl_techniques.models.lora import adapters, enable_lora, merge_lora, train_only
from dl_techniques.models.quantization import BLOCKS, dequantize_base, quantize_base

MODES = ("int8", "int4")


def most_error(kernel, mode):
    """Return float[1, out]: the most that rounding may take from float[in, out]."""
    if mode == "int8":  # Half of a step between 255 levels.
        return np.abs(kernel).max(axis=0, keepdims=True) / 127 / 2 * 1.001
    # Sixteen levels; the zero point is rounded too.
    return np.ptp(kernel, axis=0, keepdims=True) / 15 * 1.001


def decoder_kernels(model):
    return {d.path: d for d in dense_layers(model) if d.path.startswith("language_decoder")}


@pytest.mark.parametrize("mode", MODES)
def test_the_decoder_computes_with_rounded_kernels(mode):
    model, batch = tiny_nanovlm(), mixed_batch()
    order = [v.path for v in model.weights]
    exact, kernels = logits(model, batch), values(model.weights)
    assert quantize_base(model, mode) == list(decoder_kernels(model))
    assert len(decoder_kernels(model)) == 14
    assert {layer.quantization_mode for layer in decoder_kernels(model).values()} == {mode}
    quantized = logits(model, batch)
    assert np.abs(quantized - exact).max() < {"int8": 0.1, "int4": 0.5}[mode] * np.abs(exact).max()
    assert (quantized != exact).any()
    dequantize_base(model)
    assert [v.path for v in model.weights] == order
    for path, layer in decoder_kernels(model).items():
        kernel = kernels[f"{path}/kernel"]
        assert (np.abs(numpy(layer.kernel) - kernel) <= most_error(kernel, mode)).all()
    np.testing.assert_allclose(logits(model, batch), quantized, atol=1e-5)


def test_adapters_learn_what_they_learn_on_floats():
    model, twin = tiny_nanovlm(), tiny_nanovlm()
    for each in (model, twin):
        quantize_base(each, "int8", "language_decoder/block_0")
        quantize_base(each, "int4", "language_decoder/block_1")
        enable_lora(each, BLOCKS, rank=4, also_train=["language_decoder/norm"])
        move(adapters(each), seed=2)
    for mine, other in zip(model.trainable_variables, twin.trainable_variables, strict=True):
        other.assign(numpy(mine))
    dequantize_base(twin)
    before = values(model.weights)
    for each in (model, twin):
        fit(each, text_batch(), optimizer=keras.optimizers.SGD(0.1))
    after = values(model.weights)
    opened = {v.path for v in model.trainable_variables}
    assert {path for path in before if (before[path] != after[path]).any()} == opened
    assert len(opened) == 2 * 14 + 1
    learned = values(twin.trainable_variables)
    assert learned.keys() == opened
    for path, value in learned.items():
        np.testing.assert_allclose(after[path], value, atol=1e-5, err_msg=path)


def test_quantized_kernels_merge_by_way_of_floats(tmp_path):
    model = tiny_nanovlm()
    quantize_base(model)
    enable_lora(model, rank=4)
    move(adapters(model))
    assert "language_decoder/block_0/mlp/up_proj/kernel" not in train_only(model, [BLOCKS])
    answers = model.generate(
        {"text_tokens": mixed_batch()["text_tokens"][2:, :9]}, max_new_tokens=6
    )
    expected = logits(model, mixed_batch())
    with pytest.raises(ValueError, match="quantized, first .*q_proj.*dequantize_base"):
        merge_lora(model)
    with pytest.raises(ValueError, match="quantized or has a LoRA adapter"):
        model.save_to_preset(tmp_path / "preset")
    dequantize_base(model)
    model.trainable = False  # On TensorFlow, setting what is set does nothing.
    model.trainable = True
    assert len(model.trainable_variables) == len(model.weights) - 8
    merge_lora(model)
    np.testing.assert_allclose(logits(model, mixed_batch()), expected, atol=1e-5)
    again = model.generate({"text_tokens": mixed_batch()["text_tokens"][2:, :9]}, max_new_tokens=6)
    np.testing.assert_array_equal(again, answers)
    model.save_to_preset(tmp_path / "preset")
    new = tiny_nanovlm()
    assert [v.path for v in model.weights] == [v.path for v in new.weights]
    for layer, other in zip(dense_layers(model), dense_layers(new), strict=True):
        assert layer.get_config() == other.get_config()


def test_four_bits_have_scales_for_every_128_inputs():
    model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(7, name="wide")])
    kernel = np.random.default_rng(0).standard_normal((300, 7)).astype("float32")
    kernel[128:256] *= 100
    model.layers[0].kernel.assign(kernel)
    assert quantize_base(model, "int4", "wide") == [model.layers[0].path]
    x = np.random.default_rng(1).standard_normal((4, 300)).astype("float32")
    quantized = numpy(model(x))
    dequantize_base(model)
    assert [v.name for v in model.weights] == ["kernel", "bias"]
    for rows in (slice(0, 128), slice(128, 256), slice(256, 300)):
        difference = np.abs(numpy(model.layers[0].kernel)[rows] - kernel[rows])
        assert (difference <= most_error(kernel[rows], "int4")).all()
    np.testing.assert_allclose(numpy(model(x)), quantized, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_models_keep_their_precision(mode):
    model = tiny_nanovlm(dtype="bfloat16")
    (path, layer), *_ = decoder_kernels(model).items()
    kernel = numpy(layer.kernel)
    quantize_base(model, mode, path)
    x = np.random.default_rng(0).standard_normal((4, 24)).astype("float32")
    error = np.abs(numpy(layer(x)) - x @ kernel).max() / np.abs(x @ kernel).max()
    assert error < {"int8": 0.02, "int4": 0.15}[mode]
    dequantize_base(model)
    assert layer.dtype_policy.name == layer.kernel.dtype == "bfloat16"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("int2",), "mode='int2' must be one of"),
        (("float8",), "float8' is refused: Keras 3.15 has no LoRA on it"),
        (("gptq",), "23321"),
        (("awq",), "23321"),
        (("int4", "language_decoder"), "embedding language_decoder/token_embedding"),
        (("int8", "token_embedding"), "embedding language_decoder/token_embedding"),
        (("int8", "blocks"), "matches no Dense layer"),
    ],
)
def test_what_is_not_sound_is_refused(arguments, message):
    model = tiny_nanovlm()
    before = values(model.weights)
    with pytest.raises(ValueError, match=message):
        quantize_base(model, *arguments)
    assert_same(values(model.weights), before)


def test_states_that_do_not_fit_are_refused():
    model = tiny_nanovlm(dtype="mixed_float16")
    before = values(model.weights)
    with pytest.raises(ValueError, match="computes in float16"):
        quantize_base(model)
    assert_same(values(model.weights), before)
    model = tiny_nanovlm()
    with pytest.raises(ValueError, match="has no quantized kernels"):
        dequantize_base(model)
    quantize_base(model, "int8", "q_proj")
    with pytest.raises(ValueError, match=r"q_proj is quantized \(int8\)"):
        quantize_base(model, "int4")
    enable_lora(model)
    with pytest.raises(ValueError, match="quantize_base comes before enable_lora"):
        quantize_base(model, "int8", "up_proj")
