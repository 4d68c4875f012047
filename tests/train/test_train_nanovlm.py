"""The training script, as it is called."""

import json
import os
import pathlib
import subprocess
import sys

import keras
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {
    "recipe": "demo",
    "vision_config": {"img_size": 48, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "language_config": {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32},
    "projection_config": {"input_dim": 16, "output_dim": 16, "scale_factor": 2},
    "pictures": 8,
    "picture_size": 48,
    "held_out_questions": 6,
    "vocab_size": 300,
    "max_turns": 1,
    "batch_size": 24,
    "epochs": 1,
    "log_every": 1,
}


def call(*arguments):
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "train" / "train_nanovlm.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **cache, "KERAS_BACKEND": keras.backend.backend()},
        check=False,
    )


def test_the_script_trains_evaluates_and_saves(tmp_path):
    settings = SMALL | {"output_dir": str(tmp_path / "run")}
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in settings.items()}
    result = call(*(f"--{key}={text}" for key, text in texts.items()))
    assert result.returncode == 0, result.stderr
    steps = len((tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert steps == 2
    assert f"step 2/{steps} loss " in result.stdout
    assert "supervised tokens/s lr vision_encoder=" in result.stdout
    assert " s left" in result.stdout
    table = [line.split() for line in result.stdout.splitlines()]
    table = table[table.index(["held", "out", "exact", "blank", "n"]) :]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = {row[0]: int(row[3]) for row in table if row and row[0] in results}
    assert rows == {kind: row["questions"] for kind, row in results.items()}
    with Image.open(tmp_path / "run" / "contact_sheet.png") as sheet:
        sheet.load()
