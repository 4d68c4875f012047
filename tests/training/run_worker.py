"""A whole run as one of several processes: `FOLDER PROCESS COUNT PORT [resume]`; COUNT 1: alone."""

import pathlib
import sys

TESTS = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "training")]

import conftest  # noqa: F401, E402  Quiet libraries, the compilation cache.
from micro_config import micro_config  # noqa: E402

from dl_techniques.training.run import run_training  # noqa: E402

folder, process, count, port, *resume = sys.argv[1:]
together = {
    "layout": "fsdp",
    "coordinator": f"127.0.0.1:{port}",
    "num_processes": int(count),
    "process_id": int(process),
}
changes = {"checkpoint_every": 3, "evaluate_every": 3, "held_out_questions": 16}
changes |= {"pictures": 24, "epochs": 2}
config = micro_config(folder, **changes, **(together if int(count) > 1 else {}))
run_training(config, resume=bool(resume))
