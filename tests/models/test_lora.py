import keras
import numpy as np
import pytest
from adapted_models import adapted, assert_same, fit, labels_of, move, text_batch, values
from tiny_models import logits, mixed_batch, numpy, random_ids, tiny_nanovlm

from dl_techniques.models.lora import (
    ADAPTERS,
    ATTENTION,
    adapters,
    enable_lora,
    lora_layers,
    lora_settings,
    merge_lora,
    train_only,
)
from dl_techniques.models.nano_vlm import NanoVLM

PROJECTIONS = [
    f"language_decoder/block_{i}/attention/{kind}_proj" for i in range(2) for kind in "qkvo"
]


def bases(model):
    return [layer._kernel for layer in lora_layers(model)]


def open_all(model):
    model.trainable = False  # On TensorFlow, setting what is set does nothing.
    model.trainable = True


def test_attention_gets_adapters_and_answers_stay():
    model = tiny_nanovlm()
    before = logits(model, mixed_batch())
    assert enable_lora(model) == PROJECTIONS
    assert [tuple(v.shape) for v in adapters(model)[:4]] == [(24, 8), (8, 24), (24, 8), (8, 12)]
    np.testing.assert_array_equal(logits(model, mixed_batch()), before)
    matrices = {v.path for v in adapters(model)}
    assert matrices == {f"{path}/lora_kernel_{x}" for path in PROJECTIONS for x in "ab"}
    assert {v.path for v in model.trainable_variables} == matrices
    settings = lora_settings(model)
    assert (settings.pattern, settings.rank, settings.alpha) == (ATTENTION, 8, 8)
    first, second = (values(adapters(model))[f"{path}/lora_kernel_a"] for path in PROJECTIONS[:2])
    assert np.abs(first - second).max() > 0.1


def test_a_layer_multiplies_by_the_scaled_sum():
    model = adapted(rank=4, alpha=6, pattern=r"vision_encoder/block_1/mlp/fc1")
    (layer,) = lora_layers(model)
    x = np.random.default_rng(0).standard_normal((3, 16)).astype("float32")
    kernel = numpy(layer._kernel) + 1.5 * numpy(layer.lora_kernel_a) @ numpy(layer.lora_kernel_b)
    np.testing.assert_allclose(numpy(layer(x)), x @ kernel + numpy(layer.bias), atol=1e-5)


def test_a_frozen_model_trains_adapters_and_what_is_named():
    model = tiny_nanovlm()
    model.language_decoder.trainable = False
    model.trainable = False
    enable_lora(model, also_train=["modality_projection", "norm/scale"])
    paths = {v.path for v in model.trainable_variables} - {v.path for v in adapters(model)}
    assert paths == {
        "language_decoder/norm/scale",
        *(v.path for v in model.modality_projection.weights),
    }
    assert len(model.trainable_variables) == 2 * len(PROJECTIONS) + len(paths)


def test_nothing_opens_the_kernels_again():
    model = adapted()
    open_all(model)
    assert len(model.trainable_variables) == len(model.weights) - len(PROJECTIONS)
    assert not any(kernel.trainable for kernel in bases(model))
    train_only(model, ["language_decoder"])
    assert not any(kernel.trainable for kernel in bases(model))
    assert train_only(model, [ADAPTERS]) == [v.path for v in adapters(model)]
    assert [v.path for v in model.trainable_variables] == [v.path for v in adapters(model)]
    with pytest.raises(ValueError, match="match no weight that can train"):
        train_only(model, ["language_decoder/block_0/attention/q_proj/kernel"])
    assert len(model.trainable_variables) == 2 * len(PROJECTIONS)


def test_train_only_serves_models_without_adapters():
    model = tiny_nanovlm()
    model.vision_encoder.trainable = False
    opened = train_only(model, ["block_1/mlp", "modality_projection"])
    assert len(opened) == len(model.trainable_variables) == 4 + 3 + 4
    assert all("block_1/mlp" in p or p.startswith("modality_projection") for p in opened)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"pattern": r"block_\d+/attn/q_proj"},
            r"nearest paths are .*block_\\d\+/attention/q_proj",
        ),
        ({"pattern": "q_pro"}, "matches no Dense layer"),
        ({"pattern": "language_decoder"}, "embedding language_decoder/token_embedding"),
        ({"pattern": "(q_proj"}, "no regular expression"),
        ({"rank": 0}, "rank=0 must be a whole number"),
        ({"rank": True}, "rank=True must be"),
        ({"rank": 4.0}, "rank=4.0 must be"),
        ({"rank": 13}, "k_proj, \\(24, 12\\), has: 12 at most"),
        ({"alpha": 0}, "alpha=0 must be a positive number"),
        ({"alpha": float("inf")}, "alpha=inf must be"),
        ({"also_train": ["projector"]}, "nearest paths are .*modality_projection"),
        (
            {
                "pattern": "(vision_encoder|language_decoder)/.*/q_proj",
                "also_train": ["q_proj/kernel"],
            },
            "match no weight that can train",
        ),
    ],
)
def test_bad_arguments_change_nothing(options, message):
    model = tiny_nanovlm()
    before = [v.path for v in model.trainable_variables]
    with pytest.raises(ValueError, match=message):
        enable_lora(model, **options)
    assert [v.path for v in model.trainable_variables] == before
    assert lora_layers(model) == [] and lora_settings(model) is None


def test_twice_and_parts_are_errors():
    model = adapted()
    with pytest.raises(ValueError, match="8 layers of .* have adapters.*merge_lora"):
        enable_lora(model, r"block_\d+/mlp/up_proj")
    with pytest.raises(ValueError, match="must be a built keras.Model"):
        enable_lora(tiny_nanovlm().language_decoder)
    with pytest.raises(ValueError, match="no LoRA adapters to merge"):
        merge_lora(tiny_nanovlm())


def test_training_moves_adapters_and_what_is_opened():
    model = adapted(moved=False, also_train=["modality_projection"])
    opened = {v.path for v in model.trainable_variables}
    before = values(model.weights)
    fit(model, mixed_batch())
    after = values(model.weights)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == opened
    # Two moments for each, the number of steps and the learning rate.
    assert len(model.optimizer.variables) == 2 * len(opened) + 2


def test_programs_from_before_are_not_used():
    model, batch = tiny_nanovlm(), {"text_tokens": random_ids(2, 16)}
    plain = model.predict(batch, verbose=0)
    answers = model.generate(batch, max_new_tokens=8)
    enable_lora(model)
    move(adapters(model))
    adapted_answers = model.generate(batch, max_new_tokens=8)
    logits = model.predict(batch, verbose=0)
    assert np.abs(logits - plain).max() > 0.1 and (adapted_answers != answers).any()
    merge_lora(model)
    np.testing.assert_array_equal(model.generate(batch, max_new_tokens=8), adapted_answers)


def test_an_optimizer_of_other_weights_is_taken_off():
    model = tiny_nanovlm()
    model.compile("sgd", "mse")
    enable_lora(model)
    assert model.compiled  # It had no state yet.
    model.optimizer.build(model.trainable_variables)
    merge_lora(model)
    with pytest.raises(ValueError, match="call `compile"):
        model.fit(text_batch(), labels_of(text_batch()))


def test_merging_keeps_logits_and_gives_an_ordinary_model(tmp_path):
    model = adapted(
        alpha=6, pattern=r"(language_decoder|vision_encoder)/block_\d+/(attention/.*|mlp/fc1)"
    )
    expected = logits(model, mixed_batch())
    layers = [layer.path for layer in lora_layers(model)]
    assert merge_lora(model) == layers and len(layers) == 18
    assert np.abs(logits(model, mixed_batch()) - expected).max() < 1e-5
    assert lora_settings(model) is None
    new = tiny_nanovlm()
    assert [v.path for v in model.weights] == [v.path for v in new.weights]
    config = model.language_decoder.blocks[0].attention.q_proj.get_config()
    assert config == new.language_decoder.blocks[0].attention.q_proj.get_config()
    model.save_to_preset(tmp_path / "preset")
    assert_same(values(NanoVLM.from_preset(tmp_path / "preset").weights), values(model.weights))
    model.save(tmp_path / "model.keras")
    assert_same(
        values(keras.saving.load_model(tmp_path / "model.keras").weights), values(model.weights)
    )
    open_all(model)
    assert len(model.trainable_variables) == len(model.weights)
    assert len(enable_lora(model)) == 8


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_merging_in_low_precision_rounds_once(dtype):
    model = adapted(dtype=dtype, pattern="block_0/attention/q_proj")
    layers = {
        layer: numpy(layer._kernel) + numpy(layer.lora_kernel_a) @ numpy(layer.lora_kernel_b)
        for layer in lora_layers(model)
    }
    merge_lora(model)
    for layer, expected in layers.items():
        kernel = layer.kernel
        assert keras.backend.standardize_dtype(kernel.dtype) == layer.variable_dtype
        stored = expected.astype(layer.variable_dtype).astype("float32")
        np.testing.assert_array_equal(numpy(kernel), stored)
