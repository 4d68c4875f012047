import pytest
from references import LATER, NANOVLM_CONFIG

from dl_techniques.checkpoints.nanovlm_config import config_from_nanovlm, nanovlm_from_config
from dl_techniques.checkpoints.smolvlm_config import config_from_smolvlm, smolvlm_from_config
from dl_techniques.models.nano_vlm import NANOVLM_CONFIGS


@pytest.mark.parametrize("name", ["nanovlm_222m", "nanovlm_450m", "nanovlm_230m_8k"])
def test_published_configurations_survive_nanovlms_spelling(name):
    config = {k: v for k, v in NANOVLM_CONFIGS[name].items() if k != "total_params"}
    written = nanovlm_from_config(config, image_tokens=64)
    tokens = written.get("vlm_extra_tokens", {})
    assert len(tokens) == written.get("extra_token_amount", 0)
    again = config_from_nanovlm(written)
    assert again.pop("image_token_id") == config.pop("image_token_id", None)
    again["language_config"].pop("tie_embeddings")
    assert again == config


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vit_ln_eps": 1e-5}, "vit_ln_eps"),
        ({"vit_cls_flag": True}, "vit_cls_flag"),
        ({"vit_dropout": 0.1}, "vit_dropout"),
        ({"lm_dropout": 0.1}, "lm_dropout"),
        ({"lm_attn_scaling": 2.0}, "lm_attn_scaling"),
        ({"lm_tie_weights": None}, "lm_tie_weights"),
        ({"mp_pixel_shuffle_factor": "2"}, "mp_pixel_shuffle_factor"),
        ({"lm_re_base": -1}, "lm_re_base"),
        ({"vlm_extra_tokens": {"row": "<row>"}}, "vlm_extra_tokens"),
        ({"vlm_extra_tokens": None}, "extra_token_amount"),
        ({"lm_base_vocab_size": 40}, "lm_vocab_size"),
    ],
)
def test_unsupported_fields_of_nanovlm_are_named(changes, named):
    with pytest.raises(ValueError, match=named):
        config_from_nanovlm({**NANOVLM_CONFIG, **LATER, **changes})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "llava"}, "model_type"),
        ({"use_resampler": True}, "use_resampler"),
        ({"scale_factor": 0}, "scale_factor"),
        ({"text_config": {"model_type": "mistral"}}, "model_type"),
        ({"text_config": {"model_type": "qwen2"}}, "model_type"),
        ({"text_config": None}, "language config"),
        ({"vision_config": {"image_size": 19 * 32}}, "19 x 19 patches"),
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act"),
    ],
)
def test_unsupported_fields_of_smolvlm_are_named(changes, named):
    config = {"model_type": "smolvlm", "vision_config": {}, "text_config": {}}
    assert config_from_smolvlm(config)["language_config"]["hidden_dim"] == 4096
    with pytest.raises(ValueError, match=named):
        config_from_smolvlm({**config, **changes})


@pytest.mark.parametrize("tied", [True, False])
def test_the_whole_smolvlm_says_whether_the_head_is_tied(tied):
    text = {"model_type": "llama", "tie_word_embeddings": not tied}
    config = {"model_type": "smolvlm", "vision_config": {}, "text_config": text}
    arguments = config_from_smolvlm({**config, "tie_word_embeddings": tied})
    assert arguments["language_config"]["tie_embeddings"] is tied


@pytest.mark.parametrize(
    ("part", "changes", "named"),
    [
        ("language_config", {"use_qkv_bias": True}, "use_qkv_bias"),
        ("language_config", {"qk_norm": True}, "qk_norm"),
        ("vision_config", {"img_size": 19 * 16}, "19 x 19 patches"),
        ("vision_config", {"class_token": True}, "class_token"),
        ("projection_config", {"use_bias": True}, "use_bias"),
        (None, {"bidirectional_images": True}, "bidirectional_images"),
    ],
)
def test_arguments_that_the_formats_lack_are_named(part, changes, named):
    config = {k: v for k, v in NANOVLM_CONFIGS["nanovlm_450m"].items() if k != "total_params"}
    if part is not None:
        changes = {part: {**config[part], **changes}}
    with pytest.raises(ValueError, match=named):
        smolvlm_from_config({**config, **changes})
    if "patches" not in named:
        with pytest.raises(ValueError, match=named):
            nanovlm_from_config({**config, **changes}, image_tokens=64)
