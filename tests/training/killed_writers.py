"""Kills writers of checkpoints and prints, as JSON, what each death left: run as a script.

Every writer is a fork of this process, which has paid for the imports.
"""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
import types

import dl_techniques

# The package's own list of imports brings a backend, which makes every fork ten times slower.
checkpoints = types.ModuleType("dl_techniques.checkpoints")
checkpoints.__path__ = [str(pathlib.Path(dl_techniques.__file__).with_name("checkpoints"))]
sys.modules[checkpoints.__name__] = checkpoints

from toy_checkpoints import is_of, state  # noqa: E402

from dl_techniques.training.checkpoint_reader import CheckpointReader  # noqa: E402
from dl_techniques.training.checkpoint_store import CheckpointStore  # noqa: E402

RANDOM_KILLS = 40


def dead_writer(work, promises=0, seconds=None):
    """Run `work(promise)` in a fork; return (its last promise or None, whether it was killed).

    A promise is the step from which, at least, a run will be able to go on. The work is killed
    some seconds after so many promises; without `seconds` it kills itself or ends.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            work(lambda step: os.write(writing, step.to_bytes(4, "big")))
            status = 0
        os._exit(status)
    os.close(writing)
    made = b"".join(os.read(reading, 4) for _ in range(promises))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.set_blocking(reading, False)  # A child of the child may hold the other end.
    with contextlib.suppress(BlockingIOError):
        made += os.read(reading, 65536)
    os.close(reading)
    if status not in (0, signal.SIGKILL):
        raise RuntimeError(f"The writer ended with status {status}.")
    return int.from_bytes(made[-4:], "big") if made else None, status == signal.SIGKILL


def what_is_left(folder):
    """Return what a reader finds, before a new writer cleans up."""
    reader = CheckpointReader(folder)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    left = {
        "steps": reader.steps(),
        "half_written": any(name.startswith(".writing_") for name in names),
        "half_removed": any(name.startswith(".removing_") for name in names),
        "all_whole": False,
        "loaded": None,
    }
    with contextlib.suppress(ValueError):
        left["all_whole"] = all(is_of(step, *reader.load(step)) for step in reader.steps())
        left["loaded"] = reader.load_latest()[0]
    return left


def random_kills(folder):
    """Kill a run that does nothing but save, and resume it, again and again."""
    generator = random.Random(0)

    def work(promise):
        store = CheckpointStore(folder, keep_last=2)
        first = 0 if store.latest() is None else store.load_latest()[0] + 1
        for step in itertools.count(first):
            arrays, progress = state(step, size=800_000)
            store.save(step, arrays, progress, score=-step)
            # Sometimes the next save finds this one unfinished.
            if step % 3:
                store.wait()
                promise(step)

    for _ in range(RANDOM_KILLS):
        promised, _ = dead_writer(work, generator.randrange(3), generator.uniform(0, 0.01))
        yield {"promised": promised, **what_is_left(folder)}


def one_kill_before_every_operation(parent):
    """Kill a run before its first operation on files; another before its second; and so on."""

    def work(promise, folder, last):
        operations = itertools.count()

        def count(event, arguments):
            if event.split(".")[0] in ("open", "os", "shutil") and next(operations) == last:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        with CheckpointStore(folder, keep_last=1, keep_best=1) as store:
            for step, score in ((1, 1.0), (2, 2.0), (2, 2.0), (3, None)):
                store.save(step, *state(step), score, block=True)
                promise(step)
            promise(1)
            store.discard_newer(1)

    for last in itertools.count():
        with tempfile.TemporaryDirectory(dir=parent) as name:
            folder = pathlib.Path(name) / "checkpoints"
            promised, died = dead_writer(functools.partial(work, folder=folder, last=last))
            if not died:
                return
            left = {"promised": promised, **what_is_left(folder)}
            with CheckpointStore(folder) as store:
                left["cleaned"] = sorted(path.name for path in folder.iterdir())
                left["steps_after_cleaning"] = store.steps()
            yield left


def survived_by_a_child(folder):
    """Kill a writer whose own forked child lives on; open its store again."""

    def work(promise):
        with CheckpointStore(folder):
            if os.fork() == 0:
                promise(os.getpid())
            time.sleep(60)

    child, _ = dead_writer(work, promises=1, seconds=0)
    try:
        CheckpointStore(folder).close()
        yield "opened"
    except ValueError as error:
        yield str(error)
    finally:
        os.kill(child, signal.SIGKILL)


SCENARIOS = {
    "random": random_kills,
    "every operation": one_kill_before_every_operation,
    "survived": survived_by_a_child,
}

if __name__ == "__main__":
    # A killed process loses nothing that the kernel has: waiting for the disk only takes time.
    os.fsync = lambda descriptor: None
    results = {}
    for name, scenario in SCENARIOS.items():
        with tempfile.TemporaryDirectory() as folder:
            results[name] = list(scenario(pathlib.Path(folder)))
    json.dump(results, sys.stdout)
