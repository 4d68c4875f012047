"""A run that is killed again and again: `KILLS FOLDER`, or as one process `run FOLDER STEPS`.

The first kills the process at random moments and goes on each time, then compares the run with one
that was never killed. The numbers of steps leave time for as many kills as are asked for.
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
from safetensors.numpy import load_file, save_file

TESTS = pathlib.Path(__file__).parents[1]
RESULT = "end.safetensors"


def run(folder: pathlib.Path, steps: int) -> None:
    """Train two stages from where the folder is; then write the weights."""
    sys.path[:0] = [str(TESTS), str(TESTS / "training")]
    import conftest  # noqa: F401  Quiet libraries, the compilation cache.
    import keras
    from toy_runs import micro_nanovlm
    from toy_stages import align, tune

    from dl_techniques.training.stage_trainer import StageTrainer

    keras.utils.set_random_seed(0)
    model = micro_nanovlm(dropout=0.2)
    stages = [align(steps), tune(steps, ema_decay=0.9)]

    steps_taken = []

    def wait(step, model):
        steps_taken.append(step)
        if len(steps_taken) == 3:  # All is compiled.
            print("trains", flush=True)
        time.sleep(0.02)

    trainer = StageTrainer(model, stages, folder, checkpoint_every=2, on_step=wait)
    resume = (folder / "checkpoints").is_dir() and any((folder / "checkpoints").glob("step_*"))
    trainer.run(resume=resume)
    values = {f"{i:03d}": keras.ops.convert_to_numpy(v.value) for i, v in enumerate(model.weights)}
    save_file(values, folder / RESULT)


def start(folder: pathlib.Path, steps: int) -> subprocess.Popen:
    """Start the process."""
    return subprocess.Popen(
        [sys.executable, __file__, "run", folder, str(steps)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_training(folder: pathlib.Path, steps: int) -> subprocess.Popen:
    """Start the process, and wait until it has taken some steps."""
    process, seen = start(folder, steps), []
    for line in process.stdout:
        seen.append(line)
        if line == "trains\n":
            return process
    raise AssertionError("".join(seen))


def finish(process: subprocess.Popen) -> None:
    """Wait for the end of a run."""
    output, _ = process.communicate()
    assert process.returncode == 0, output


def kill_again_and_again(folder: pathlib.Path, steps: int, kills: int, longest: float) -> list[str]:
    """Kill a run at random moments; return which checkpoints there were each time."""
    moments = random.Random(0)
    found = []
    for _ in range(kills):
        process = start_training(folder, steps)
        time.sleep(moments.uniform(0.0, longest))
        process.kill()
        process.communicate()
        assert not (folder / RESULT).exists(), "The run is too short for so many kills."
        places = folder / "checkpoints"
        names = sorted(path.name for path in places.iterdir()) if places.is_dir() else []
        found.append(" ".join(name for name in names if name != ".lock") or "nothing")
    finish(start(folder, steps))
    return found


def read_log(folder: pathlib.Path) -> list[dict]:
    """Return the lines of a log without times."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in rows]


def largest_difference(first: pathlib.Path, second: pathlib.Path) -> tuple[float, float]:
    """Return the largest differences between two runs: of numbers in the logs, and of weights."""
    logs = [read_log(folder) for folder in (first, second)]
    assert [sorted(row) for row in logs[0]] == [sorted(row) for row in logs[1]]
    of_logs = max(abs(a[k] - b[k]) for a, b in zip(*logs, strict=True) for k in a)
    ends = [load_file(folder / RESULT) for folder in (first, second)]
    of_weights = max(float(np.abs(ends[0][k] - ends[1][k]).max()) for k in ends[0])
    return of_logs, of_weights


def main() -> None:
    """Run as the module's docstring says."""
    first, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    if first == "run":
        run(folder, int(sys.argv[3]))
        return
    kills = int(first)
    steps, longest = 40 + 20 * kills, 2.5
    finish(start(folder / "whole", steps))
    print(*kill_again_and_again(folder / "killed", steps, kills, longest), sep="\n")
    differences = largest_difference(folder / "whole", folder / "killed")
    print(f"{os.environ['KERAS_BACKEND']}: {kills} kills, {2 * steps} steps, largest differences:")
    print("logged numbers {:g}, weights {:g}".format(*differences))


if __name__ == "__main__":
    main()
