import numpy as np
import pytest
from keras import ops
from references import DECODERS, llama, loaded_by_transformers, outputs, text_ids
from tiny_models import run

from dl_techniques.checkpoints import Checkpoint, export_decoder, load_weights
from dl_techniques.checkpoints.configs import (
    language_config_from_llama,
    llama_from_language_config,
)
from dl_techniques.checkpoints.json_files import read_json
from dl_techniques.layers.attention_mask import attention_rule
from dl_techniques.models.language_decoder import LanguageDecoder


def decoder_of(folder, **changes):
    config = read_json(folder / "config.json")
    decoder = LanguageDecoder(**{**language_config_from_llama(config), **changes})
    decoder.build((None, None))
    load_weights(decoder, folder, config["model_type"])
    return decoder


def hidden_states(decoder, ids):
    def call(ids):
        allowed, positions = attention_rule(ops.arange(ids.shape[1]), ids.shape[1])
        states = [decoder.token_embedding(ids)]
        for block in decoder.blocks:
            states.append(block(states[-1], positions, allowed))
        return [*states[:-1], decoder.norm(states[-1]), decoder(ids)]

    return run(call, ids.astype("int32"))


def assert_same_tensors(first, second):
    with Checkpoint(first) as a, Checkpoint(second) as b:
        assert sorted(a.keys()) == sorted(b.keys())
        for key in a.keys():
            assert a.dtype(key) == b.dtype(key)
            assert a.view(key).tobytes() == b.view(key).tobytes(), key


@pytest.mark.parametrize("family", list(DECODERS))
def test_loads_exports_and_goes_back(family, tmp_path):
    reference = DECODERS[family]()
    reference.save_pretrained(tmp_path / "theirs")
    decoder = decoder_of(tmp_path / "theirs")
    ids = text_ids(2, 24)
    expected = outputs(reference, input_ids=ids)
    *states, logits = hidden_states(decoder, ids)
    assert len(states) == len(expected.hidden_states)
    for ours, theirs in zip(states, expected.hidden_states, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits, expected.logits.numpy(), rtol=1e-5, atol=1e-5)
    assert np.abs(logits).mean() > 0.1

    export_decoder(decoder, tmp_path / "ours", pad_token_id=0, eos_token_id=2)
    assert_same_tensors(tmp_path / "theirs", tmp_path / "ours")
    again = loaded_by_transformers(type(reference), tmp_path / "ours")
    np.testing.assert_array_equal(outputs(again, input_ids=ids).logits, expected.logits)
    assert again.config.eos_token_id == 2
    config = language_config_from_llama(read_json(tmp_path / "ours/config.json"))
    assert config == language_config_from_llama(read_json(tmp_path / "theirs/config.json"))


def test_bfloat16(tmp_path):
    import torch

    reference = llama(tied=True).to(torch.bfloat16)
    reference.save_pretrained(tmp_path / "theirs")
    decoder = decoder_of(tmp_path / "theirs", dtype="bfloat16")
    assert {v.dtype for v in decoder.weights} == {"bfloat16"}
    export_decoder(decoder, tmp_path / "ours")
    assert_same_tensors(tmp_path / "theirs", tmp_path / "ours")
    wide = decoder_of(tmp_path / "theirs")
    assert {v.dtype for v in wide.weights} == {"float32"}
    export_decoder(wide, tmp_path / "narrowed", dtype="bfloat16")
    assert_same_tensors(tmp_path / "theirs", tmp_path / "narrowed")
    assert read_json(tmp_path / "narrowed/config.json")["dtype"] == "bfloat16"


def test_shards_of_transformers_and_ours(tmp_path):
    reference = llama()
    reference.save_pretrained(tmp_path / "single")
    reference.save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    decoder = decoder_of(tmp_path / "theirs")
    export_decoder(decoder, tmp_path / "ours", max_shard_bytes=10_000, pad_token_id=0)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    assert_same_tensors(tmp_path / "single", tmp_path / "theirs")
    assert_same_tensors(tmp_path / "single", tmp_path / "ours")
    again = loaded_by_transformers(type(reference), tmp_path / "ours")
    ids = text_ids(1, 8)
    expected = outputs(reference, input_ids=ids).logits
    np.testing.assert_array_equal(outputs(again, input_ids=ids).logits, expected)


def test_a_decoder_in_a_model_of_another_name(tmp_path):
    llama(tied=True).save_pretrained(tmp_path)
    decoder = decoder_of(tmp_path, name="writer")
    table = np.asarray(ops.convert_to_numpy(decoder.token_embedding.embeddings))
    with Checkpoint(tmp_path) as checkpoint:
        np.testing.assert_array_equal(table, checkpoint.read("model.embed_tokens.weight"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"model_type": "mistral"}, "model_type"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"layer_types": 3}, "layer_types"),
        ({"hidden_size": "24"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"num_key_value_heads": 2.5}, "num_key_value_heads"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rope_parameters": [1]}, "rope_parameters"),
    ],
)
def test_unsupported_fields_are_named(changes, named):
    config = {**llama().config.to_dict(), **changes}
    with pytest.raises(ValueError, match=named):
        language_config_from_llama(config)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"qk_norm": True}, "qk_norm"),
        ({"num_heads": 5}, "hidden_dim"),
        ({"head_dim": 8, "use_qkv_bias": True}, "head_dim"),
        ({"heads": 5}, "heads"),
    ],
)
def test_arguments_that_transformers_lacks_are_named(changes, named):
    arguments = {"vocab_size": 8, "hidden_dim": 24, "num_layers": 1, "num_heads": 4, "mlp_dim": 8}
    assert llama_from_language_config(arguments)["model_type"] == "llama"
    with pytest.raises(ValueError, match=named):
        llama_from_language_config({**arguments, **changes})


def test_older_spelling_of_the_rotary_fields():
    config = llama().config.to_dict()
    del config["rope_parameters"]
    scaling = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    arguments = language_config_from_llama({**config, "rope_theta": 7.0, "rope_scaling": scaling})
    assert arguments["rope_theta"] == 7.0
    del scaling["type"]
    assert arguments["rope_scaling"] == {"rope_type": "llama3", **scaling}
    assert language_config_from_llama({**config, "rope_scaling": None})["rope_theta"] == 10000.0
