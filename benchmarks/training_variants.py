"""The demo, trained in several ways: how many held-out questions each answers.

    KERAS_BACKEND=jax python benchmarks/training_variants.py [NAME ...]

Precisions have the demo's own settings, Muon among them. The other rows have AdamW, which needs
three times as many steps; the last learns adapters on rounded kernels in the second half of them.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS = 3375
_ADAMW = {
    "steps": STEPS,
    "optimizer": {"type": "adamw", "weight_decay": 0.05},
    "learning_rates": {"vision": 2e-3, "language": 2e-3, "projection": 2e-3},
}
_BASE = {"name": "base", "steps": STEPS // 2}
_LORA = {
    "name": "adapters",
    "steps": STEPS - STEPS // 2,
    "lora": {"pattern": r"language_decoder/block_\d+", "rank": 16, "quantize": "int8"},
    "learning_rates": {"lora_kernel_[ab]": 4e-3, "vision": 2e-3, "projection": 2e-3},
}
VARIANTS = {
    "float32": {},
    "mixed_bfloat16": {"precision": "mixed_bfloat16"},
    "mixed_float16": {"precision": "mixed_float16"},
    "adamw": _ADAMW,
    "ema": {**_ADAMW, "ema_decay": 0.99},
    "int8 + lora": {**_ADAMW, "stages": [_BASE, _LORA]},
}


def run(name: str, folder: str) -> None:
    from dl_techniques.utils.memory import keep_freed_memory

    keep_freed_memory()
    from dl_techniques.training.recipes import get_recipe
    from dl_techniques.training.run import run_training

    run_training({**get_recipe("demo"), **VARIANTS[name], "output_dir": folder})


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        run(*sys.argv[2:])
        return
    names = sys.argv[1:] or list(VARIANTS)
    print(f"{os.environ['KERAS_BACKEND']}, exact match on held-out questions")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, __file__, "--run", name, folder], capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(done.stdout + done.stderr)
            results = json.loads((Path(folder) / "results.json").read_text())
            rows = (Path(folder) / "log.jsonl").read_text().splitlines()
        skipped = json.loads(rows[-1])["skipped_steps"]
        kinds = " ".join(f"{k} {v['exact_match']:.1%}" for k, v in results.items())
        print(f"{name:16s} {kinds} ({len(rows)} steps, {skipped} skipped)", flush=True)


if __name__ == "__main__":
    main()
