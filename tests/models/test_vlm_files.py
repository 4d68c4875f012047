"""Configs and `.keras` files, within one backend and across the three."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from tiny_models import logits, mixed_batch, text_batch, tiny_config, tiny_nanovlm

from dl_techniques.models.nano_vlm import NanoVLM

BACKENDS = ("jax", "tensorflow", "torch")
READER = """
import sys
import keras
import numpy as np
import dl_techniques.models.nano_vlm
from tiny_models import logits

folder = sys.argv[1]
batch = dict(np.load(folder + "/batch.npz"))
model = keras.saving.load_model(folder + "/model.keras")
np.save(folder + "/" + keras.backend.backend() + ".npy", logits(model, batch))
"""


@pytest.mark.parametrize("fusion", ["placeholder", "prefix"])
def test_file_round_trip_is_bit_equal(fusion, tmp_path):
    model = tiny_nanovlm(fusion, bidirectional_images=fusion == "placeholder")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is NanoVLM
    assert loaded.get_config() == model.get_config()
    for before, after in zip(model.weights, loaded.weights, strict=True):
        assert before.path == after.path
        np.testing.assert_array_equal(before.numpy(), after.numpy())
    batch = mixed_batch() if fusion == "placeholder" else text_batch()
    np.testing.assert_array_equal(logits(loaded, batch), logits(model, batch))


def test_config_is_plain_and_complete():
    changes = {"bidirectional_images": True, "dtype": "mixed_bfloat16", "name": "small"}
    model = NanoVLM(**tiny_config(**changes))
    config = model.get_config()
    for key, value in tiny_config().items():
        assert config[key] == value
    twin = NanoVLM.from_config(json.loads(json.dumps(config)))
    assert twin.get_config() == config
    assert (twin.bidirectional_images, twin.name) == (True, "small")
    assert twin.dtype_policy.name == "mixed_bfloat16"
    assert twin.language_decoder.blocks[0].mlp.gate_proj.compute_dtype == "bfloat16"


def test_variable_paths_are_stable():
    paths = {v.path for v in NanoVLM(**tiny_config()).weights}
    assert {
        "vision_encoder/patch_embedding/position_embedding",
        "vision_encoder/block_1/attention/q_proj/kernel",
        "vision_encoder/block_1/mlp/fc2/bias",
        "modality_projection/proj/kernel",
        "language_decoder/token_embedding/embeddings",
        "language_decoder/block_1/attention/o_proj/kernel",
        "language_decoder/block_1/mlp/down_proj/kernel",
        "language_decoder/norm/scale",
    } <= paths


def test_a_file_of_this_backend_loads_on_the_others(tmp_path):
    here = keras.backend.backend()
    others = [b for b in BACKENDS if b != here]
    missing = [b for b in others if importlib.util.find_spec(b) is None]
    if missing:
        pytest.fail(f"This test loads the file on every backend: install {missing}.")
    model, batch = tiny_nanovlm(bidirectional_images=True), mixed_batch()
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "batch.npz", **batch)
    tests = str(pathlib.Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")]))
    readers = {
        backend: subprocess.Popen(
            [sys.executable, "-c", READER, str(tmp_path)],
            env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": paths},
            stderr=subprocess.PIPE,
            text=True,
        )
        for backend in others
    }
    expected = logits(model, batch)
    for backend, reader in readers.items():
        _, errors = reader.communicate(timeout=300)
        assert reader.returncode == 0, f"{backend}: {errors[-3000:]}"
        got = np.load(tmp_path / f"{backend}.npy")
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
