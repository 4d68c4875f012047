import hashlib
import json

import keras
import numpy as np
import pytest
from adapted_models import adapted, assert_same, move, text_batch, values
from safetensors.numpy import load_file, save_file
from tiny_models import logits, mixed_batch, numpy, tiny_nanovlm

import dl_techniques
from dl_techniques.checkpoints.adapter_files import CONFIG_FILE, WEIGHTS_FILE, describe_weights
from dl_techniques.checkpoints.adapters import load_adapters, save_adapters
from dl_techniques.checkpoints.key_map import variables_of
from dl_techniques.models.lora import (
    ATTENTION,
    adapters,
    enable_lora,
    lora_layers,
    lora_settings,
    merge_lora,
    train_only,
)
from dl_techniques.models.quantization import dequantize_base, quantize_base

Q_PROJ = "language_decoder/block_0/attention/q_proj"
PROJECTION = [
    "modality_projection/proj/kernel",
    "modality_projection/proj/bias",
    "modality_projection/layer_norm/gamma",
    "modality_projection/layer_norm/beta",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with adapters of rank 4 and the projection, and what their model has learned."""
    model = adapted(alpha=6, also_train=["modality_projection"])
    folder = tmp_path_factory.mktemp("saved")
    save_adapters(model, folder)
    return folder, values(model.trainable_variables), logits(model, mixed_batch())


@pytest.fixture
def copied(saved, tmp_path):
    """The same in a folder that may be changed."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (tmp_path / name).write_bytes((saved[0] / name).read_bytes())
    return tmp_path


def change_config(folder, **changes):
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_files_hold_all_that_trains_and_name_the_base(saved):
    folder, learned, _ = saved
    assert_same(load_file(folder / WEIGHTS_FILE), learned)
    config = json.loads((folder / CONFIG_FILE).read_text())
    base = tiny_nanovlm()
    frozen = {p: v for p, v in variables_of(base).items() if not p.startswith("modality")}
    assert config == {
        "format": "dl_techniques_lora",
        "version": dl_techniques.__version__,
        "model_class": "NanoVLM",
        "pattern": ATTENTION,
        "rank": 4,
        "alpha": 6,
        "layers": [
            f"language_decoder/block_{i}/attention/{x}_proj" for i in range(2) for x in "qkvo"
        ],
        "trained": PROJECTION,
        "base": describe_weights(frozen),
    }
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_a_base_gets_everything_back_and_trains_on(saved):
    folder, learned, expected = saved
    model = tiny_nanovlm()
    before = values(model.weights)
    assert load_adapters(model, folder) == [layer.path for layer in lora_layers(model)]
    assert_same(values(model.trainable_variables), learned)
    np.testing.assert_allclose(logits(model, mixed_batch()), expected, atol=1e-5)
    move(adapters(model))
    load_adapters(model, folder)  # Over others of the same kind.
    assert_same(values(model.trainable_variables), learned)
    settings = lora_settings(model)
    assert (settings.pattern, settings.rank, settings.alpha) == (ATTENTION, 4, 6)
    after = values(model.weights)
    assert {p for p in before if (before[p] != after[p]).any()} == set(PROJECTION)


def test_adapters_are_merged_on_loading(saved):
    folder, learned, expected = saved
    model = tiny_nanovlm()
    load_adapters(model, folder, merge=True)
    assert lora_layers(model) == [] and len(model.weights) == 61
    np.testing.assert_allclose(logits(model, mixed_batch()), expected, atol=1e-5)


def test_a_folder_is_saved_again_as_it_was(saved, tmp_path):
    model = tiny_nanovlm()
    load_adapters(model, saved[0])
    save_adapters(model, tmp_path / "again")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        again, first = ((folder / name).read_bytes() for folder in (tmp_path / "again", saved[0]))
        assert again == first.replace(b'"alpha": 6,', b'"alpha": 6.0,')


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_adapters_of_a_quantized_base(mode, tmp_path):
    model = tiny_nanovlm()
    quantize_base(model, mode)
    enable_lora(model, rank=4)
    move(adapters(model))
    save_adapters(model, tmp_path)
    expected = logits(model, text_batch())
    with pytest.raises(ValueError, match=r"another base: .*'int8'.* of {'float32': 61}"):
        load_adapters(tiny_nanovlm(), tmp_path)
    again = tiny_nanovlm()
    quantize_base(again, mode)
    with pytest.raises(ValueError, match="merge=True is impossible.*dequantize_base"):
        load_adapters(again, tmp_path, merge=True)
    load_adapters(again, tmp_path)
    assert_same(values(again.trainable_variables), values(adapters(model)))
    dequantize_base(again)
    merge_lora(again)
    np.testing.assert_allclose(logits(again, text_batch()), expected, atol=1e-5)


def test_what_trained_once_is_saved_for_good(tmp_path):
    model = adapted(also_train=["modality_projection"])
    train_only(model, ["lora_kernel_[ab]"])
    move(model.trainable_variables)
    train_only(model, ["language_decoder/norm"])
    save_adapters(model, tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert config["trained"] == [*PROJECTION, "language_decoder/norm/scale"]
    again = tiny_nanovlm()
    load_adapters(again, tmp_path)
    assert_same(values(again.weights), values(model.weights))


def test_all_that_does_not_fit_is_told_at_once(copied):
    tensors = load_file(copied / WEIGHTS_FILE)
    tensors["extra"] = np.zeros(3, "float32")
    tensors[f"{Q_PROJ}/lora_kernel_a"] = np.zeros((24, 5), "float32")
    tensors["modality_projection/proj/bias"] = np.zeros(24, "int32")
    del tensors[f"{Q_PROJ}/lora_kernel_b"]
    save_file(tensors, copied / WEIGHTS_FILE)
    layers = [Q_PROJ, "language_decoder/block_7/mlp/up_proj"]
    change_config(copied, model_class="NVLM", layers=layers, trained=[*PROJECTION, "head/kernel"])
    model = tiny_nanovlm()
    model.vision_encoder.weights[0].assign_add(keras.ops.ones((16, 16)))
    before = values(model.weights)
    with pytest.raises(ValueError) as error:
        load_adapters(model, copied)
    message = str(error.value)
    for part in (
        "adapters of a NVLM, not of a NanoVLM",
        "block_7/mlp/up_proj: the model has no such Dense layer",
        "head/kernel: the model has no such weight that can train",
        "another base: digest sha256:",
        "block_7/mlp/up_proj/lora_kernel_a: missing",
        "head/kernel: missing",
        f"{Q_PROJ}/lora_kernel_b: missing",
        "block_1/attention/o_proj/lora_kernel_b: unexpected, shape (4, 24)",
        "extra: unexpected, shape (3,)",
        f"{Q_PROJ}/lora_kernel_a: shape (24, 5), expected (24, 4)",
        "modality_projection/proj/bias: dtype I32, expected a float",
    ):
        assert part in message
    assert_same(values(model.weights), before)
    assert lora_layers(model) == [] and len(model.trainable_variables) == 61


def test_other_adapters_and_other_precision_are_refused(saved):
    model = adapted(rank=2)
    before = values(model.weights)
    with pytest.raises(ValueError, match="rank=4 and alpha=6, the model has rank=2 and alpha=2"):
        load_adapters(model, saved[0])
    assert_same(values(model.weights), before)
    with pytest.raises(ValueError, match="adapters of 8 layers, the model has 2; .*k_proj"):
        load_adapters(adapted(alpha=6, pattern="language_decoder/.*/q_proj"), saved[0])
    with pytest.raises(ValueError, match=r"of {'float32': 57}, .* of {'bfloat16': 57}"):
        load_adapters(tiny_nanovlm(dtype="bfloat16"), saved[0])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": None}, "format=None: only 'dl_techniques_lora' is supported"),
        ({"rank": -1}, "rank=-1: expected a positive whole number"),
        ({"alpha": "8"}, "alpha='8': expected a positive number"),
        ({"layers": "all"}, "expected a list of paths"),
        ({"layers": [Q_PROJ, Q_PROJ]}, "a path stands twice"),
        ({"trained": [3]}, "expected a list of paths"),
        ({"base": "sha256:0"}, "expected an object with digest and dtypes"),
        ({"pattern": 7}, "expected a text"),
    ],
)
def test_damaged_configs_are_refused(changes, message, copied):
    change_config(copied, **changes)
    with pytest.raises(ValueError, match=message):
        load_adapters(tiny_nanovlm(), copied)


def test_damaged_and_missing_files_are_refused(copied):
    data = (copied / WEIGHTS_FILE).read_bytes()
    (copied / WEIGHTS_FILE).write_bytes(data[:-8])
    with pytest.raises(ValueError, match=f"{WEIGHTS_FILE} is not a valid safetensors"):
        load_adapters(tiny_nanovlm(), copied)
    (copied / WEIGHTS_FILE).unlink()
    with pytest.raises(ValueError, match=f"{WEIGHTS_FILE} does not exist"):
        load_adapters(tiny_nanovlm(), copied)
    (copied / CONFIG_FILE).write_text("{")
    with pytest.raises(ValueError, match=f"{CONFIG_FILE} is not valid JSON"):
        load_adapters(tiny_nanovlm(), copied)


def test_what_would_be_lost_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="no LoRA adapters: enable_lora"):
        save_adapters(tiny_nanovlm(), tmp_path)
    model = tiny_nanovlm()
    model.language_decoder.blocks[0].attention.q_proj.enable_lora(4)
    with pytest.raises(ValueError, match="q_proj does not come from enable_lora"):
        save_adapters(model, tmp_path)
    model = adapted()
    lora_layers(model)[0]._kernel.trainable = True
    with pytest.raises(ValueError, match="1 kernels with adapters are trainable.*train_only"):
        save_adapters(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "failing", ["safetensors_writer._write_tensor", "adapter_files.write_json"]
)
def test_a_failed_save_leaves_what_was_there(copied, monkeypatch, failing):
    (copied / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    model = adapted(rank=2)

    def full(*arguments):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(f"dl_techniques.checkpoints.{failing}", full)
        with pytest.raises(OSError, match="no space left"):
            save_adapters(model, copied)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
    save_adapters(model, copied)
    assert json.loads((copied / CONFIG_FILE).read_text())["rank"] == 2
    assert (copied / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_digest_covers_names_shapes_dtypes_and_values(dtype):
    def variable(value, dtype=dtype):
        return keras.Variable(np.array(value, "float32"), dtype=dtype)

    weights = {"b": variable([[1.5, -2.0]]), "a": variable(3.0)}
    hashed = hashlib.sha256()
    for name, shape, value in (("a", "()", 3.0), ("b", "(1, 2)", [[1.5, -2.0]])):
        hashed.update(f"{name} {shape} {dtype}\n".encode())
        hashed.update(np.array(value).astype(dtype).tobytes())
    expected = {"digest": f"sha256:{hashed.hexdigest()}", "dtypes": {dtype: 2}}
    assert describe_weights(weights) == expected
    for change in (
        {"b": variable([[1.5], [-2.0]])},
        {"b": variable([[1.5, -2.5]])},
        {"a": variable(3.0, "float16")},
        {"c": variable(3.0)},
    ):
        assert describe_weights({**weights, **change})["digest"] != expected["digest"]
    assert numpy(weights["a"]) == 3
