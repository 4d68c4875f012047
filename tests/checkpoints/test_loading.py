"""A checkpoint that does not fit is refused with every reason, and nothing is written."""

import pathlib
import re

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import fill

from dl_techniques.checkpoints import Checkpoint, load_weights, save_weights
from dl_techniques.checkpoints.key_map import bind, variables_of
from dl_techniques.checkpoints.key_maps import KEY_MAPS
from dl_techniques.models.language_decoder import LanguageDecoder

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Q = "model.layers.0.self_attn.q_proj.weight"
K = "model.layers.0.self_attn.k_proj.weight"


def tiny_decoder(seed=0, vocab_size=12, **changes):
    decoder = LanguageDecoder(vocab_size, 8, 1, 2, 10, num_kv_heads=1, **changes)
    decoder.build((None, None))
    return fill(decoder, seed)


def values(decoder):
    variables = variables_of(decoder)
    return {path: np.array(keras.ops.convert_to_numpy(v)) for path, v in variables.items()}


@pytest.fixture
def saved(tmp_path):
    """Return (path, tensors) of a checkpoint of the tied tiny decoder with seed 1."""
    save_weights(tiny_decoder(1), tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    return path, load_file(path)


def refused(decoder, path, tensors, *messages, **options):
    """Assert that these tensors are refused with these messages, and return the whole message."""
    save_file({k: np.array(v, order="C") for k, v in tensors.items()}, path)
    before = values(decoder)
    with pytest.raises(ValueError) as error:
        load_weights(decoder, path, "llama", **options)
    text = str(error.value)
    assert str(path) in text
    for message in messages:
        assert message in text, text
    after = values(decoder)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    return text


def test_every_weight_is_assigned_once(saved, monkeypatch):
    decoder, assigned = tiny_decoder(), []
    assign = keras.Variable.assign

    def counted(self, value):
        assigned.append(self.path)
        return assign(self, value)

    monkeypatch.setattr(keras.Variable, "assign", counted)
    load_weights(decoder, saved[0], "llama")
    monkeypatch.undo()
    assert sorted(assigned) == sorted(v.path for v in decoder.weights)
    for name, value in values(tiny_decoder(1)).items():
        np.testing.assert_array_equal(values(decoder)[name], value)


def test_all_problems_are_told_together(saved):
    path, tensors = saved
    del tensors[Q]
    tensors[K] = tensors[K][:, :-1]
    tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((10, 8), "int32")
    tensors["model.layers.1.mlp.up_proj.weight"] = np.ones((10, 8), "float32")
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(8, "float32")
    text = refused(
        tiny_decoder(),
        path,
        tensors,
        "5 problems",
        f"{Q}: missing, needed for block_0/attention/q_proj/kernel",
        f"{K}: shape (4, 7), expected (4, 8)",
        "mlp.up_proj.weight: dtype I32",
        "model.layers.1.mlp.up_proj.weight: unexpected, shape (10, 8)",
        "q_proj.bias: unexpected",
    )
    assert text.count("\n") == 5


@pytest.mark.skipif(not pathlib.Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_what_is_read_of_a_file_does_not_stay_in_memory(tmp_path):
    decoder = LanguageDecoder(40_000, 32, 1, 2, 10)
    decoder.build((None, None))
    save_weights(decoder, tmp_path, "llama")
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.view(EMBED).sum() != 0
        assert resident(tmp_path) > 4_000_000
        load_weights(decoder, checkpoint, "llama")
        assert resident(tmp_path) < 1_000_000


def resident(folder):
    """Return how many bytes of the mapped files of a folder are in this process's memory."""
    count, inside = 0, False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            inside = str(folder) in line
        elif inside and line.startswith("Rss:"):
            count += 1024 * int(line.split()[1])
    return count


def test_dropped_keys_are_no_problem(saved):
    path, tensors = saved
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**tensors, name: np.ones(2, "float32")}, path)
    load_weights(tiny_decoder(), path, "llama")
    assert KEY_MAPS["llama"].dropped(name)
    assert KEY_MAPS["llama"].dropped(f"{name}x") is None


@pytest.mark.parametrize("new", [(8,), (), (8, 8, 1), (0, 8)])
def test_a_tensor_of_another_rank_or_without_values(saved, new):
    path, tensors = saved
    refused(tiny_decoder(), path, {**tensors, Q: np.ones(new, "float32")}, f"{Q}: shape {new}")
    refused(tiny_decoder(), path, {**tensors, EMBED: np.ones(new, "float32")}, f"{EMBED}: ")


def test_a_truncated_shard_leaves_the_model_untouched(tmp_path):
    save_weights(tiny_decoder(1), tmp_path, "llama", max_shard_bytes=500)
    last = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-1])
    decoder = tiny_decoder()
    before = values(decoder)
    with pytest.raises(ValueError, match=last.name):
        load_weights(decoder, tmp_path, "llama")
    for name, value in values(decoder).items():
        np.testing.assert_array_equal(before[name], value)


def test_both_tensors_of_a_tied_head_must_be_equal(saved):
    path, tensors = saved
    save_file({**tensors, HEAD: tensors[EMBED].copy()}, path)
    load_weights(tiny_decoder(), path, "llama")
    other = tensors[EMBED].copy()
    other[-1, -1] += 1e-6
    refused(tiny_decoder(), path, {**tensors, HEAD: other}, f"{EMBED}, {HEAD}: differ")
    del tensors[EMBED]
    save_file({**tensors, HEAD: other}, path)
    decoder = tiny_decoder()
    load_weights(decoder, path, "llama")
    table = keras.ops.convert_to_numpy(decoder.token_embedding.embeddings)
    np.testing.assert_array_equal(table, other)


def test_an_untied_head_needs_a_tensor_of_its_own(saved):
    path, tensors = saved
    refused(tiny_decoder(tie_embeddings=False), path, tensors, f"{HEAD}: missing")


def test_a_vocabulary_is_never_shrunk_and_extended_only_on_demand(saved):
    path, tensors = saved
    refused(tiny_decoder(vocab_size=11), path, tensors, "12 token ids", "never shrunk")
    smaller = tiny_decoder(vocab_size=11)
    refused(smaller, path, tensors, "never shrunk", extend_vocabulary=True)
    refused(tiny_decoder(vocab_size=14), path, tensors, "12 token ids", "extend_vocabulary=True")
    decoder = tiny_decoder(vocab_size=14)
    load_weights(decoder, path, "llama", extend_vocabulary=True)
    table = np.array(keras.ops.convert_to_numpy(decoder.token_embedding.embeddings))
    np.testing.assert_array_equal(table[:12], tensors[EMBED])
    np.testing.assert_allclose(table[12:], [tensors[EMBED].mean(axis=0)] * 2, atol=1e-6)


def test_an_untied_head_is_extended_too(tmp_path):
    save_weights(tiny_decoder(1, tie_embeddings=False), tmp_path, "llama")
    decoder = tiny_decoder(vocab_size=13, tie_embeddings=False)
    load_weights(decoder, tmp_path, "llama", extend_vocabulary=True)
    head = np.array(keras.ops.convert_to_numpy(decoder.token_embedding.reverse_embeddings))
    with Checkpoint(tmp_path) as checkpoint:
        stored = checkpoint.read(HEAD)
    np.testing.assert_array_equal(head[:, :12], stored.T)
    np.testing.assert_allclose(head[:, 12], stored.mean(axis=0), atol=1e-6)


def test_float16_that_would_overflow(saved, tmp_path):
    path, tensors = saved
    tensors[Q][0, 0] = 1e5
    refused(tiny_decoder(dtype="float16"), path, tensors, f"{Q}: values beyond float16")
    decoder = tiny_decoder()
    load_weights(decoder, path, "llama")
    with pytest.raises(ValueError, match=f"{Q} has values beyond float16"):
        save_weights(decoder, tmp_path / "narrow", "llama", dtype="float16")
    assert not list((tmp_path / "narrow").iterdir())
    tensors[Q][0, 0] = np.inf
    save_file(tensors, path)
    load_weights(tiny_decoder(dtype="float16"), path, "llama")


def test_a_model_that_the_table_does_not_know(saved):
    with pytest.raises(
        ValueError, match="q_proj/bias: the format 'llama' has no line for this weight"
    ):
        load_weights(tiny_decoder(use_qkv_bias=True), saved[0], "llama")
    with pytest.raises(ValueError, match="q_norm/scale"):
        load_weights(tiny_decoder(qk_norm=True), saved[0], "qwen2")
    with pytest.raises(ValueError, match="build it first"):
        load_weights(LanguageDecoder(12, 8, 1, 2, 10), saved[0], "llama")
    with pytest.raises(ValueError, match="Unknown key map 'bert'"):
        load_weights(tiny_decoder(), saved[0], "bert")


@pytest.mark.parametrize("name", list(KEY_MAPS))
def test_no_two_lines_of_a_table_have_one_path_or_key(name):
    key_map = KEY_MAPS[name]
    ours = [path for rule in key_map.rules for path in rule.ours.split()]
    theirs = [rule.theirs for rule in key_map.rules]
    assert len(set(ours)) == len(ours) and len(set(theirs)) == len(theirs)
    assert not any(key_map.dropped(prefix + key) for prefix in key_map.prefixes for key in theirs)


def test_transforms_are_inverse_to_each_other():
    paths = variables_of(tiny_decoder(tie_embeddings=False))
    arrays = {path: np.array(keras.ops.convert_to_numpy(v)) for path, v in paths.items()}
    for binding in bind(KEY_MAPS["llama"], paths):
        mine = tuple(arrays[path] for path in binding.paths)
        shapes = tuple(array.shape for array in mine)
        theirs = binding.transform.to_theirs(mine)
        assert theirs.shape == binding.transform.their_shape(shapes)
        for array, again in zip(mine, binding.transform.to_ours(theirs, shapes), strict=True):
            np.testing.assert_array_equal(array, again)
