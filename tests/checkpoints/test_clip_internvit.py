"""CLIP and InternViT are settings of `VisionTransformer`; their files go both ways."""

import copy
import math
import random

import ml_dtypes
import numpy as np
import pytest
from internvit_names import with_dummy_heads
from references import (
    VISION,
    clip,
    internvit,
    internvit_config,
    internvit_state,
    outputs,
    state_of,
    whole_clip,
)
from safetensors.numpy import load_file, save_file
from test_damaged_configs import JUNK
from tiny_models import fill, run

from dl_techniques.checkpoints import load_weights, save_weights
from dl_techniques.checkpoints.json_files import read_json
from dl_techniques.checkpoints.key_map import variables_of
from dl_techniques.checkpoints.key_maps import KEY_MAPS
from dl_techniques.checkpoints.vision_configs import (
    clip_from_vision_config,
    internvit_from_vision_config,
    vision_config_from_clip,
    vision_config_from_internvit,
)
from dl_techniques.layers import SigLIPVisionTransformer, VisionTransformer
from dl_techniques.models.model_size import without_weights

KINDS = ["6b", "300m"]
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype("float32")
LAYER = "encoder.layers.1.attn"


def encoder_for(config, **changes):
    encoder = VisionTransformer(**{**config, **changes})
    encoder.build((None, 16, 16, 3))
    return fill(encoder)


def saved(state, path):
    save_file({key: np.array(value, order="C") for key, value in state.items()}, path)
    return path


def values(encoder):
    return {path: np.array(v.numpy()) for path, v in variables_of(encoder).items()}


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key], err_msg=key)


def assert_parity(encoder, reference):
    """Compare the output of every layer, and of the whole."""

    def hidden_states(images):
        x = encoder.patch_embedding(images)
        states = [x if encoder.pre_norm is None else encoder.pre_norm(x)]
        for block in encoder.blocks:
            states.append(block(states[-1]))
        return [*states, encoder(images)]

    expected = outputs(reference, pixel_values=IMAGES.transpose(0, 3, 1, 2))
    *states, last = run(hidden_states, IMAGES)
    assert len(states) == len(expected.hidden_states) == 3
    for ours, theirs in zip(states, expected.hidden_states, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5)
    assert last.shape == (2, 17, 16)
    np.testing.assert_allclose(last, expected.last_hidden_state.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_clip_loads_and_goes_back(tmp_path, hidden_act):
    reference = clip(hidden_act=hidden_act, layer_norm_eps=1e-3)
    reference.save_pretrained(tmp_path / "theirs")
    theirs = read_json(tmp_path / "theirs/config.json")
    config = vision_config_from_clip(theirs)
    encoder = encoder_for(config)
    load_weights(encoder, tmp_path / "theirs", "clip")
    assert_parity(encoder, reference)

    save_weights(encoder, tmp_path / "ours", "clip")
    again = encoder_for(config)
    load_weights(again, tmp_path / "ours", "clip")
    assert_equal(values(again), values(encoder))
    kept = {k: v for k, v in state_of(reference).items() if not k.startswith("post_layernorm.")}
    written = load_file(tmp_path / "ours/model.safetensors")
    assert_equal(written, {f"vision_model.{key}": value for key, value in kept.items()})
    ours = clip_from_vision_config(config)
    assert ours == {key: theirs[key] for key in ours}


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_clip_files_with_and_without_prefix(tmp_path, prefix):
    reference = clip()
    state = {prefix + key: value for key, value in state_of(reference).items()}
    assert prefix + "post_layernorm.bias" in state
    encoder = encoder_for(vision_config_from_clip(VISION))
    load_weights(encoder, saved(state, tmp_path / "clip.safetensors"), "clip")
    assert_parity(encoder, reference)


def test_the_vision_part_of_a_whole_clip(tmp_path):
    reference = whole_clip()
    state = state_of(reference)
    state["vision_model.embeddings.position_ids"] = np.arange(17)[None]
    parts = {key.split(".")[0] for key in state}
    assert parts == {
        "text_model",
        "vision_model",
        "visual_projection",
        "text_projection",
        "logit_scale",
    }
    config = vision_config_from_clip(reference.config.to_dict())
    assert config == vision_config_from_clip(VISION)
    encoder = encoder_for(config)
    load_weights(encoder, saved(state, tmp_path / "clip.safetensors"), "clip")
    assert_parity(encoder, reference.vision_model)


def test_an_older_spelling_of_the_vision_part_overrides():
    whole = {"model_type": "clip", "vision_config": {"hidden_size": 3}}
    assert vision_config_from_clip({**whole, "vision_config_dict": None})["embed_dim"] == 3
    assert vision_config_from_clip({**whole, "vision_config_dict": VISION})["embed_dim"] == 16


@pytest.mark.parametrize("prefix", ["", "vision_model."])
@pytest.mark.parametrize("kind", KINDS)
def test_internvit_loads_and_goes_back(tmp_path, kind, prefix):
    reference = internvit(kind)
    state = internvit_state(reference)
    assert state["embeddings.class_embedding"].shape == (1, 1, 16)
    assert state[f"{LAYER}.qkv.weight"].shape == (48, 16)
    theirs = internvit_config(kind)
    config = vision_config_from_internvit(theirs)
    encoder = encoder_for(config)
    path = saved({prefix + k: v for k, v in state.items()}, tmp_path / "theirs.safetensors")
    load_weights(encoder, path, "internvit")
    assert_parity(encoder, reference)
    dropping = encoder_for(config, drop_class_token=True)
    load_weights(dropping, path, "internvit")
    np.testing.assert_array_equal(run(dropping, IMAGES), run(encoder, IMAGES)[:, 1:])

    save_weights(encoder, tmp_path, "internvit")
    assert_equal(load_file(tmp_path / "model.safetensors"), state)
    again = encoder_for(config)
    load_weights(again, tmp_path / "model.safetensors", "internvit")
    assert_equal(values(again), values(encoder))
    ours = internvit_from_vision_config(config)
    assert {key: ours[key] for key in theirs} == theirs
    assert vision_config_from_internvit(ours) == config


@pytest.mark.parametrize("dtype", ["float32", ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_dummy_heads_are_cut_off(tmp_path, kind, dtype):
    state = {k: v.astype(dtype) for k, v in internvit_state(internvit(kind)).items()}
    padded = with_dummy_heads(state, 24)
    assert padded[f"{LAYER}.qkv.weight"].shape == (72, 16)
    assert padded[f"{LAYER}.proj.weight"].shape == (16, 24)
    config = vision_config_from_internvit(internvit_config(kind))
    loaded = []
    for name, tensors in (("plain", state), ("padded", padded)):
        encoder = encoder_for(config)
        load_weights(encoder, saved(tensors, tmp_path / f"{name}.safetensors"), "internvit")
        loaded.append(values(encoder))
    assert_equal(*loaded)
    save_weights(encoder, tmp_path / "ours", "internvit", dtype=np.dtype(dtype).name)
    assert_equal(load_file(tmp_path / "ours/model.safetensors"), state)


def test_the_encoder_of_a_whole_vlm(tmp_path):
    state = {f"vision_model.{k}": v for k, v in internvit_state(internvit("6b")).items()}
    whole = {
        **state,
        "mlp1.0.weight": np.ones(64, "float32"),
        "language_model.model.norm.weight": np.ones(8, "float32"),
    }
    encoder = encoder_for(vision_config_from_internvit(internvit_config("6b")))
    load_weights(encoder, saved(whole, tmp_path / "whole.safetensors"), "internvit")
    assert not KEY_MAPS["internvit"].dropped("mlp.0.weight")
    refuse(saved({**state, "mlp2.0.weight": np.ones(64)}, tmp_path / "x.safetensors"), ["mlp2.0"])


def refuse(path, messages, name="internvit", kind="6b"):
    """Assert that a file is refused with exactly these problems and nothing is written."""
    config = internvit_config(kind)
    config = {
        "internvit": lambda: vision_config_from_internvit(config),
        "clip": lambda: vision_config_from_clip(VISION),
    }[name]()
    encoder = encoder_for(config)
    before = values(encoder)
    with pytest.raises(ValueError) as error:
        load_weights(encoder, path, name)
    text = str(error.value)
    assert text.count("\n  - ") == len(messages), text
    for message in messages:
        assert message in text, text
    assert_equal(values(encoder), before)


def test_all_problems_of_an_internvit_file_are_told_together(tmp_path):
    state = internvit_state(internvit("6b"))
    del state["encoder.layers.0.ls1"]
    state["encoder.layers.0.norm1.bias"] = np.ones(16, "float32")
    state[f"{LAYER}.qkv.bias"] = np.ones(48, "float32")
    state["embeddings.class_embedding"] = np.ones(16, "float32")
    state[f"{LAYER}.qkv.weight"] = np.ones((70, 16), "float32")
    state[f"{LAYER}.proj.weight"] = np.ones((16, 15), "float32")
    state["encoder.layers.1.mlp.fc1.weight"] = np.ones((25, 16), "float32")
    refuse(
        saved(state, tmp_path / "x.safetensors"),
        [
            "encoder.layers.0.ls1: missing, needed for block_0/ls1/scale",
            "encoder.layers.0.norm1.bias: unexpected",
            f"{LAYER}.qkv.bias: unexpected",
            "embeddings.class_embedding: shape (16,), expected (1, 1, 16)",
            f"{LAYER}.qkv.weight: shape (70, 16), expected (48, 16)",
            f"{LAYER}.proj.weight: shape (16, 15), expected (16, 16)",
            "encoder.layers.1.mlp.fc1.weight: shape (25, 16), expected (24, 16)",
        ],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_the_other_kind(tmp_path, kind):
    other = KINDS[1 - KINDS.index(kind)]
    path = saved(internvit_state(internvit(other)), tmp_path / "x.safetensors")
    of_6b, of_300m = ("q_norm.weight", "k_norm.weight"), ("qkv.bias", "norm1.bias", "norm2.bias")
    missing, extra = (of_6b, of_300m) if kind == "6b" else (of_300m, of_6b)
    messages = [f"{name}: missing" for name in missing] + [f"{name}: unexpected" for name in extra]
    refuse(path, [m for m in messages for _ in range(2)], kind=kind)


def test_all_problems_of_a_clip_file_are_told_together(tmp_path):
    state = {f"vision_model.{k}": v for k, v in state_of(clip()).items()}
    # The key that tells the prefix, too.
    del state["vision_model.embeddings.patch_embedding.weight"]
    state["vision_model.embeddings.patch_embedding.bias"] = np.ones(16, "float32")
    state["vision_model.embeddings.class_embedding"] = np.ones((1, 1, 16), "float32")
    state["vision_model.post_layernorm.scale"] = np.ones(16, "float32")
    messages = [
        "vision_model.embeddings.patch_embedding.weight: missing",
        "vision_model.embeddings.patch_embedding.bias: unexpected",
        "vision_model.embeddings.class_embedding: shape (1, 1, 16), expected (16,)",
        "vision_model.post_layernorm.scale: unexpected",
    ]
    refuse(saved(state, tmp_path / "x.safetensors"), messages, "clip")
    bare = {key.removeprefix("vision_model."): value for key, value in state.items()}
    messages = [message.removeprefix("vision_model.") for message in messages]
    refuse(saved(bare, tmp_path / "x.safetensors"), messages, "clip")


@pytest.mark.parametrize("value", [1e-30, np.nan])
def test_heads_that_are_not_dummy(tmp_path, value):
    state = with_dummy_heads(internvit_state(internvit("6b")), 24)
    for layer in (0, 1):
        state[f"encoder.layers.{layer}.attn.proj.weight"][3, -1] = value
    refuse(
        saved(state, tmp_path / "x.safetensors"),
        [
            f"encoder.layers.{layer}.attn.proj.weight: shape (16, 24), expected (16, 16): the "
            "heads beyond that are not zero"
            for layer in (0, 1)
        ],
    )


def test_tensors_that_disagree_on_their_heads(tmp_path):
    plain = internvit_state(internvit("6b"))
    state = with_dummy_heads(plain, 24)
    for name in ("qkv.weight", "q_norm.weight"):
        state[f"{LAYER}.{name}"] = plain[f"{LAYER}.{name}"]
    refuse(
        saved(state, tmp_path / "x.safetensors"),
        [
            f"{LAYER}.{name}: 0 channels of dummy heads, but 8 in most"
            for name in ("qkv.weight", "q_norm.weight")
        ],
    )


@pytest.mark.parametrize("name", ["clip", "internvit"])
def test_a_truncated_file(tmp_path, name):
    state = state_of(clip()) if name == "clip" else internvit_state(internvit("6b"))
    path = saved(state, tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    config = vision_config_from_clip(VISION)
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        load_weights(encoder_for(config), path, name)


def test_encoders_that_a_table_does_not_know(tmp_path):
    siglip = SigLIPVisionTransformer(16, 4, 16, 2, 2, mlp_ratio=1.5)
    siglip.build((None, 16, 16, 3))
    with pytest.raises(ValueError, match="norm/gamma: the format 'clip' has no line"):
        save_weights(siglip, tmp_path, "clip")
    per_head = encoder_for(vision_config_from_internvit(internvit_config("6b")), qk_norm=True)
    path = saved(internvit_state(internvit("6b")), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="q_norm.weight: 8 channels of dummy heads"):
        load_weights(per_head, path, "internvit")


# As published; fields that we do not read left out.
CLIP_LARGE_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
INTERNVIT_6B = {"num_hidden_layers": 45, "image_size": 448}
INTERNVIT_300M = {
    **CLIP_LARGE_336,
    "image_size": 448,
    "norm_type": "layer_norm",
    "qkv_bias": True,
    "qk_normalization": False,
    "initializer_factor": 1.0,
    "drop_path_rate": 0.1,
    "use_moe": False,
}


@pytest.mark.parametrize(
    ("config", "tokens", "parameters"),
    [
        # transformers' count has the pooled token's norm too.
        (vision_config_from_clip(CLIP_LARGE_336), 577, 303_507_456 - 2 * 1024),
        (vision_config_from_internvit(INTERNVIT_6B), 1025, 5_536_496_000),
        (vision_config_from_internvit(INTERNVIT_300M), 1025, 304_012_288),
    ],
)
def test_true_sizes(config, tokens, parameters):
    size = config["img_size"]

    def built():
        encoder = VisionTransformer(**config)
        encoder.build((None, size, size, 3))
        return encoder

    encoder = without_weights(built)
    assert sum(math.prod(v.shape) for v in encoder.weights) == parameters
    assert encoder.compute_output_shape((None, size, size, 3)) == (
        None,
        tokens,
        config["embed_dim"],
    )


def test_absent_fields_have_the_defaults_of_the_formats():
    config = vision_config_from_internvit({})
    assert (config["depth"], config["num_heads"], config["img_size"]) == (48, 25, 224)
    assert (config["norm_type"], config["qk_norm"], config["layer_scale"]) == ("rms", "width", 0.1)
    assert not config["use_qkv_bias"]
    config = vision_config_from_clip({})
    assert (config["patch_size"], config["activation"]) == (32, "quick_gelu")
    assert config["norm_epsilon"] == 1e-5


def test_one_epsilon_for_all_norms_of_internvit():
    theirs = {**internvit_config("6b"), "layer_norm_eps": 1e-3}
    block = encoder_for(vision_config_from_internvit(theirs)).blocks[0]
    norms = (block.norm1, block.norm2, block.attention.q_norm, block.attention.k_norm)
    assert [norm.epsilon for norm in norms] == [1e-3] * 4


@pytest.mark.parametrize(
    ("read", "field", "value"),
    [
        (vision_config_from_clip, "hidden_act", "gelu_new"),
        (vision_config_from_clip, "model_type", "siglip_vision_model"),
        (vision_config_from_clip, "attention_dropout", 0.1),
        (vision_config_from_clip, "layer_norm_eps", 0),
        (vision_config_from_clip, "num_channels", 1),
        (vision_config_from_clip, "image_size", [224, 224]),
        (vision_config_from_internvit, "hidden_act", "quick_gelu"),
        (vision_config_from_internvit, "norm_type", "rms"),
        (vision_config_from_internvit, "model_type", "internvl_vision"),
        (vision_config_from_internvit, "dropout", 0.1),
        (vision_config_from_internvit, "attention_dropout", 0.1),
        (vision_config_from_internvit, "qkv_bias", "no"),
        (vision_config_from_internvit, "qk_normalization", 3),
        (vision_config_from_internvit, "initializer_factor", None),
        (vision_config_from_internvit, "use_moe", True),
    ],
)
def test_unsupported_fields_are_named(read, field, value):
    with pytest.raises(ValueError, match=field):
        read({field: value})


@pytest.mark.parametrize(
    ("write", "changes", "named"),
    [
        (clip_from_vision_config, {"class_token": False}, "class_token=False: CLIP has"),
        (clip_from_vision_config, {"use_patch_bias": True}, "use_patch_bias"),
        (clip_from_vision_config, {"use_pre_norm": False}, "use_pre_norm"),
        (clip_from_vision_config, {"use_final_norm": True}, "use_final_norm"),
        (clip_from_vision_config, {"norm_type": "rms"}, "norm_type"),
        (clip_from_vision_config, {"activation": "gelu_tanh"}, "activation='gelu_tanh'"),
        (clip_from_vision_config, {"img_size": (28, 14)}, "img_size"),
        (clip_from_vision_config, {"width": 3}, r"no arguments \['width'\]"),
        (internvit_from_vision_config, {"qk_norm": True}, "qk_norm=True"),
        (internvit_from_vision_config, {"layer_scale": None}, "layer_scale=None"),
        (internvit_from_vision_config, {"layer_scale": 0.0}, "layer_scale=0.0"),
        (internvit_from_vision_config, {"activation": "gelu_tanh"}, "activation"),
        (internvit_from_vision_config, {"norm_type": "batch"}, "norm_type='batch'"),
        (internvit_from_vision_config, {"class_token": False}, "class_token"),
    ],
)
def test_arguments_that_a_format_lacks_are_named(write, changes, named):
    reads = {
        clip_from_vision_config: vision_config_from_clip,
        internvit_from_vision_config: vision_config_from_internvit,
    }
    config = {**reads[write]({}), "dropout": 0.5, "drop_class_token": True}
    assert reads[write](write(config)) == reads[write]({})
    with pytest.raises(ValueError, match=named):
        write({**config, **changes})


@pytest.mark.parametrize(
    ("read", "config"),
    [
        (vision_config_from_clip, {"model_type": "clip", "vision_config": CLIP_LARGE_336}),
        (vision_config_from_internvit, INTERNVIT_300M),
    ],
)
def test_junk_in_configs_is_refused_or_read_but_never_a_crash(read, config):
    generator, refused = random.Random(0), 0
    for _ in range(300):
        damaged = copy.deepcopy(config)
        holder = generator.choice([damaged, damaged.get("vision_config", damaged)])
        holder[generator.choice(sorted(holder))] = copy.deepcopy(generator.choice(JUNK))
        try:
            read(damaged)
        except ValueError:
            refused += 1
    assert refused > 50
    for junk in (None, 3, "x", [], [{}], {"model_type": []}):
        with pytest.raises(ValueError):
            read(junk)
