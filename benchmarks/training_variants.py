"""The demo, trained in several ways: how many held-out questions each answers.

    KERAS_BACKEND=jax python benchmarks/training_variants.py [--steps 1125] [NAME ...]

Precisions have the demo's own settings, Muon among them. The other rows have AdamW, which needs
more steps; the last learns adapters on rounded kernels in the second half of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ("float32", "mixed_bfloat16", "mixed_float16", "adamw", "ema", "int8 + lora")


def settings(name: str, steps: int) -> dict:
    """Return what differs from the demo's settings."""
    if name == "float32" or name.startswith("mixed"):
        return {"precision": name, "steps": steps}
    adamw = {
        "steps": steps,
        "optimizer": {"type": "adamw", "weight_decay": 0.05},
        "learning_rates": {"vision": 2e-3, "language": 2e-3, "projection": 2e-3},
    }
    base = {"name": "base", "steps": steps // 2}
    adapters = {
        "name": "adapters",
        "steps": steps - steps // 2,
        "lora": {"pattern": r"language_decoder/block_\d+", "rank": 16, "quantize": "int8"},
        "learning_rates": {"lora_kernel_[ab]": 4e-3, "vision": 2e-3, "projection": 2e-3},
    }
    more = {"adamw": {}, "ema": {"ema_decay": 0.99}, "int8 + lora": {"stages": [base, adapters]}}
    return {**adamw, **more[name]}


def run(name: str, steps: int, folder: str) -> None:
    from dl_techniques.utils.memory import keep_freed_memory

    keep_freed_memory()
    from dl_techniques.training.recipes import get_recipe
    from dl_techniques.training.run import run_training

    run_training({**get_recipe("demo"), **settings(name, steps), "output_dir": folder})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--steps", type=int, default=1125, help="the demo has 1125")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no such names: {sorted(unknown)}")
    if options.folder:
        run(*options.names, options.steps, options.folder)
        return
    print(f"{os.environ['KERAS_BACKEND']}, exact match on held-out questions")
    for name in options.names or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, name, f"--steps={options.steps}"]
            done = subprocess.run([*command, f"--folder={folder}"], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stdout + done.stderr)
            results = json.loads((Path(folder) / "results.json").read_text())
            rows = (Path(folder) / "log.jsonl").read_text().splitlines()
        skipped = json.loads(rows[-1])["skipped_steps"]
        kinds = " ".join(f"{k} {v['exact_match']:.1%}" for k, v in results.items())
        print(f"{name:16s} {kinds} ({len(rows)} steps, {skipped} skipped)", flush=True)


if __name__ == "__main__":
    main()
