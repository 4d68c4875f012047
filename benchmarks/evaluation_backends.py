"""Scores the same checkpoints on JAX, TensorFlow and PyTorch, and counts unlike answers.

    python benchmarks/evaluation_backends.py DATA easy_vqa=runs/easy_vqa coco_yesno=runs/photos

Each backend runs `dl-techniques evaluate` in a process of its own, greedily and in the model's
precision. Sets without a dev split are asked about the tenth of the pictures that runs hold out.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from dl_techniques.evaluation.benchmarks import get_benchmark
from dl_techniques.evaluation.run import task_records

BACKENDS = ("jax", "tensorflow", "torch")


def evaluate(backend: str, task: str, model: str, data: str, folder: Path) -> float:
    """Answer all questions; return the seconds that it took."""
    if (folder / task).exists():
        raise SystemExit(f"{folder / task} has answers already: name another --output.")
    program = str(Path(sys.executable).with_name("dl-techniques"))
    command = [program, "evaluate", "--model", model, "--tasks", task, "--data", data]
    command += ["--output", str(folder), "--batch-size", "64"]
    if get_benchmark(task).split == "train":
        command += ["--held-out", "0.1"]
    began = time.perf_counter()
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{task} on {backend} failed:\n{done.stderr[-3000:]}")
    return time.perf_counter() - began


def row(task: str, model: str, data: str, output: Path) -> str:
    """Return a line of the table."""
    seconds, scores, answers = [], [], []
    for backend in BACKENDS:
        folder = output / backend
        seconds.append(evaluate(backend, task, model, data, folder))
        results = json.loads((folder / "results.json").read_text())["tasks"][task]
        scores.append(results["figures"][results["metric"]]["value"])
        answers.append([record["answer"] for record in task_records(folder, task)])
    number = len(answers[0])
    unlike = sum(len(set(each)) > 1 for each in zip(*answers, strict=True))
    cells = [task, results["metric"], f"{number:,}", *(f"{100 * x:.2f} %" for x in scores)]
    cells += [str(unlike), " / ".join(f"{x:.0f}" for x in seconds)]
    return f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder that holds the sets")
    parser.add_argument("tasks", nargs="+", help="TASK=MODEL")
    parser.add_argument("--output", type=Path, default=Path("out/evaluation_backends"))
    options = parser.parse_args()
    print("| set | figure | n | JAX | TensorFlow | PyTorch | unlike answers | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for pair in options.tasks:
        task, _, model = pair.partition("=")
        print(row(task, model, options.data, options.output), flush=True)


if __name__ == "__main__":
    main()
