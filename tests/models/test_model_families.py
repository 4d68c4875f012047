"""Every named configuration: its class, true count, line of the table; LoRA and quantization."""

import copy

import keras
import numpy as np
import pytest
from tiny_families import family_batch, family_model
from tiny_models import numpy

from dl_techniques.models import families
from dl_techniques.models.families import MODEL_NAMES, TOTAL_PARAMS, create_model, family_of
from dl_techniques.models.ghost_vis import GHOSTVIS_CONFIGS, GhostVis
from dl_techniques.models.layer_changes import dense_layers
from dl_techniques.models.lora import adapters, enable_lora, merge_lora
from dl_techniques.models.model_size import analyze_model_size, without_weights
from dl_techniques.models.nano_vlm import NANOVLM_CONFIGS, NanoVLM
from dl_techniques.models.nvlm import NVLM
from dl_techniques.models.nvlm_configs import NVLM_CONFIGS
from dl_techniques.models.quantization import dequantize_base, quantize_base
from dl_techniques.training.model_table import labelled_size, model_rows
from dl_techniques.training.plan import plan_training

CROSS = "language_decoder/block_1/cross_attention/attention"


def test_every_name_has_its_class():
    assert set(MODEL_NAMES) == {*NANOVLM_CONFIGS, *GHOSTVIS_CONFIGS, *NVLM_CONFIGS}
    made = {name: create_model(name) for name in ("ghostvis_mini", "nvlm_mini_h")}
    assert type(made["ghostvis_mini"]) is GhostVis and type(made["nvlm_mini_h"]) is NVLM
    assert families.model_class("nanovlm_450m") is NanoVLM
    assert {name: model.count_params() for name, model in made.items()} == {
        name: TOTAL_PARAMS[name] for name in made
    }


def test_changes_replace_arguments_but_not_the_table():
    before = copy.deepcopy(NVLM_CONFIGS["nvlm_mini_d"])
    model = without_weights(lambda: create_model("nvlm_mini_d", vocab_size=100))
    model.language_config["hidden_dim"] = 1
    families.model_arguments("nvlm_mini_d")["vision_config"]["depth"] = 1
    assert model.vocab_size == 100 and NVLM_CONFIGS["nvlm_mini_d"] == before


@pytest.mark.parametrize("call", [create_model, analyze_model_size])
def test_unknown_names_are_refused(call):
    with pytest.raises(ValueError, match="Unknown model 'nvlm_70b': choose from .*nvlm_d_72b"):
        call("nvlm_70b")


def test_arguments_tell_their_family():
    for name in MODEL_NAMES:
        assert family_of(families.model_arguments(name)) is families.model_class(name)
    assert family_of({"family": "NVLM", "projector_config": {}}) is NVLM


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_table_counts_what_the_configuration_says(name):
    (row,) = model_rows([name])
    assert row.parameters == sum(row.components) == TOTAL_PARAMS[name]
    assert row.flops > 0 and f" {TOTAL_PARAMS[name]:,} " in str(row)
    said = labelled_size(name)
    assert (row.note == "") == (said is None or abs(said / TOTAL_PARAMS[name] - 1) < 0.05)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("nvlm_3b", "the name says 3 B, it is 3.65 B"),
        ("nvlm_13b", "the name says 13 B, it is 15.75 B"),
        ("nvlm_34b", "the name says 34 B, it is 65.47 B"),
        ("ghostvis_1_5b", "1.5 B is its decoder alone"),
        ("nvlm_x_72b", "72 B is its decoder alone"),
        ("nvlm_7b", ""),
        ("llava_1_5_7b", ""),
    ],
)
def test_names_that_say_another_size_are_told(name, note):
    (row,) = model_rows([name])
    assert row.note == note and str(row).endswith(note or f"{row.flops / 1e12:.3f}")


@pytest.mark.parametrize(
    ("name", "tokens"), [("nanovlm_222m", 177), ("ghostvis_mini", 144), ("nvlm_mini_h", 133)]
)
def test_work_of_a_row_is_that_of_the_plan(name, tokens):
    (row,) = model_rows([name])
    prefix = 49 if name == "nanovlm_222m" else 0
    plan = plan_training(name, 1, tokens - prefix)
    assert (row.flops, row.tokens) == (plan.flops, plan.tokens) and row.tokens == tokens


def answers(model, case):
    return numpy(model(family_batch(case)[0]))


@pytest.mark.parametrize(
    ("case", "pattern", "layer"),
    [
        ("nvlm_x", r"language_decoder/block_\d+/cross_attention/attention/.*", f"{CROSS}/k_proj"),
        (
            "ghostvis",
            "vision_resampler/.*/(q|v)_proj",
            "modality_projection/vision_resampler/block_1/attention/v_proj",
        ),
        ("nvlm_d", "vision_projector/fc[12]", "modality_projection/vision_projector/fc2"),
    ],
)
def test_adapters_reach_the_new_layers_and_merge(case, pattern, layer):
    model = family_model(case)
    before = answers(model, case)
    assert layer in enable_lora(model, pattern, rank=2)
    np.testing.assert_allclose(answers(model, case), before, atol=1e-5)
    assert {v.path.split("/")[0] for v in model.trainable_variables} == {layer.split("/")[0]}
    for variable in adapters(model):
        variable.assign(variable + 0.1)
    changed = answers(model, case)
    assert np.abs(changed - before).max() > 1e-3
    merge_lora(model)
    np.testing.assert_allclose(answers(model, case), changed, atol=1e-4)


def test_adapters_of_the_decoder_leave_new_cross_attention_to_be_trained_whole():
    model = family_model("nvlm_x")
    assert not any("cross_attention" in path for path in enable_lora(model, rank=2))
    model = family_model("nvlm_x")
    enable_lora(model, rank=2, also_train=["cross_attention", "modality_projection"])
    paths = {v.path for v in model.trainable_variables}
    kernels = {f"{CROSS}/{kind}_proj/kernel" for kind in "qkvo"}
    assert kernels | {"language_decoder/block_1/cross_attention/gate"} <= paths


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantized_blocks_have_quantized_cross_attention(mode):
    model = family_model("nvlm_h")
    exact = answers(model, "nvlm_h")
    rounded = quantize_base(model, mode)
    assert {f"{CROSS}/{kind}_proj" for kind in "qkvo"} <= set(rounded)
    quantized = answers(model, "nvlm_h")
    assert 0 < np.abs(quantized - exact).max() < 0.6 * np.abs(exact).max()
    assert rounded == dequantize_base(model)
    np.testing.assert_allclose(answers(model, "nvlm_h"), quantized, atol=1e-4)


def test_the_connector_is_quantized_by_name():
    model = family_model("ghostvis")
    quantize_base(model, "int8", "modality_projection")
    inside = [d for d in dense_layers(model) if d.path.startswith("modality_projection/")]
    assert len(inside) == 2 * 6 + 2 and {d.quantization_mode for d in inside} == {"int8"}
    assert np.isfinite(answers(model, "ghostvis")).all()
    assert keras.ops.shape(model.encode_vision(family_batch("ghostvis")[0]["images"]))[2] == 3
