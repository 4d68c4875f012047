"""StageTrainer: runs a list of stages, and can be killed at any moment without losing its way."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from dl_techniques.training.checkpoint_reader import CheckpointReader
from dl_techniques.training.checkpoint_store import CheckpointStore
from dl_techniques.training.processes import (
    any_process,
    gather_json,
    is_main_process,
)
from dl_techniques.training.progress import ProgressReport
from dl_techniques.training.run_folder import is_run
from dl_techniques.training.run_outputs import remove_outputs
from dl_techniques.training.stage_run import StageRun
from dl_techniques.training.stages import Stage
from dl_techniques.training.stop_signals import stop_signals
from dl_techniques.training.watching import Evaluation, LogFile, TensorBoard, Watcher
from dl_techniques.utils.appended_file import AppendedFile


class StageTrainer:
    """Trains a model stage by stage.

    The folder gets `checkpoints/` (see `CheckpointStore`), `log.jsonl` (one line per step and per
    evaluation), `tensorboard/`, `skipped.jsonl` (steps that were left out, with the samples of
    their batches) and, after each stage, `<stage>/model.keras`, or `<stage>/adapters` of a stage
    that trained such.

    Several processes (`initialize_processes`) train together if each has its part of the data and
    they share the folder, into which only the first writes.

    Args:
        model: A `VisionLanguageModel`.
        stages: In their order; names must differ.
        folder: Where everything goes.
        checkpoint_every: Steps between checkpoints; there is also one at the end of each stage and
            when the run is stopped.
        keep_last: See `CheckpointStore`; the one with the best score is kept besides.
        log_every: Steps between lines where there is no terminal.
        max_skipped: A run ends when so many steps in a row were not finite.
        evaluate: Is called with (step, model); the model has its averaged weights then, if any.
            Every one of several processes calls it, with a whole copy of the model (`own_copy`);
            what the first one finds is told.
        evaluate_every: Steps between evaluations, each with a checkpoint; None: at the end of each
            stage only.
        watchers: Beside the log and TensorBoard.
        on_step: Is called with (step, model) after each step; what it returns is logged.

    Raises:
        ValueError: wrong numbers or names.
    """

    def __init__(
        self,
        model: keras.Model,
        stages: Sequence[Stage],
        folder: str | Path,
        *,
        checkpoint_every: int = 500,
        keep_last: int = 2,
        log_every: int = 10,
        max_skipped: int = 10,
        evaluate: Callable[[int, keras.Model], Evaluation] | None = None,
        evaluate_every: int | None = None,
        watchers: Sequence[Watcher] = (),
        on_step: Callable[[int, keras.Model], dict[str, float] | None] | None = None,
    ):
        names = [stage.name for stage in stages]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"Stages need names of their own, got {names}.")
        numbers = (checkpoint_every, keep_last, log_every, max_skipped, evaluate_every or 1)
        if min(numbers) < 1:
            raise ValueError(
                "checkpoint_every, keep_last, log_every, max_skipped and evaluate_every must be at "
                f"least 1, got {numbers}."
            )
        self.model = model
        self.stages = list(stages)
        self.folder = Path(folder)
        self.checkpoint_every = checkpoint_every
        self.max_skipped = max_skipped
        self.evaluate = evaluate
        self.evaluate_every = evaluate_every
        self.on_step = on_step
        self._keep_last = keep_last
        self._log_every = log_every
        self._watchers: list[Watcher] = []
        if is_main_process():
            log, curves = LogFile(self.folder / "log.jsonl"), self.folder / "tensorboard"
            self._watchers = [log, TensorBoard(curves), *watchers]
        self._skipped = AppendedFile(self.folder / "skipped.jsonl")

    def begin(self, restart: bool = False) -> None:
        """Make sure that a new run can begin in the folder.

        Args:
            restart: Whether to remove what a run left that the folder holds: its checkpoints,
                models, scores and pictures.

        Raises:
            ValueError: the folder holds a run, and it is not to be restarted.
        """
        folder = self.folder / "checkpoints"
        there = CheckpointReader(folder).steps()
        finished = is_run(self.folder)
        any_process(False)  # All have looked before the first one changes anything.
        if not restart and (there or finished):
            found, rather = ("checkpoints", "Resume it, restart") if there else ("model", "Restart")
            raise ValueError(
                f"{self.folder} holds the {found} of a run. {rather} it, or choose another folder."
            )
        if not restart or not is_main_process():
            return
        remove_outputs(self.folder, [stage.name for stage in self.stages])
        if there:
            with CheckpointStore(folder) as store:
                store.discard_newer(-1)

    def run(self, resume: bool = False) -> None:
        """Train all stages; a first ctrl-C or SIGTERM saves after the running step.

        Args:
            resume: Go on from the newest sound checkpoint in the folder: the same batches, losses
                and weights follow as if the run had not been stopped.

        Raises:
            FloatingPointError: too many steps in a row were not finite.
            KeyboardInterrupt: after the saving that a signal asked for.
            OSError: a checkpoint could not be written.
            ValueError: there is nothing to resume, it belongs to another run, or a new run would
                be written over an old one.
        """
        if not resume:
            self.begin()
        with self._store() as store:
            done = store.load_latest() if resume else None
            any_process(False)  # All have read it before the first one writes.
            first, before = (0, 0) if done is None else self._place(done[2])
            report = ProgressReport(0, 0 if done is None else done[0], self._log_every)
            with report, stop_signals() as stop:
                for stage in self.stages[:first]:  # What they learned is in the checkpoint.
                    stage.add_adapters(self.model)
                for number in range(first, len(self.stages)):
                    run = StageRun(self, number, before, store, report, stop)
                    before = run.train(done if number == first else None)
                for watcher in self._watchers:
                    watcher.close()

    def _store(self):
        folder = self.folder / "checkpoints"
        if is_main_process():
            return CheckpointStore(folder, self._keep_last, best="max")
        return contextlib.nullcontext(CheckpointReader(folder))

    def _place(self, progress: dict) -> tuple[int, int]:
        """Return (the number of the stage to go on with, the run's steps before that stage)."""
        names = [stage.name for stage in self.stages]
        if progress["stages"] != names:
            raise ValueError(
                f"The run to resume has the stages {progress['stages']}, this one has {names}."
            )
        if "over" not in progress:
            raise ValueError(
                f"The checkpoint of step {progress['step']} is of an older version of "
                "dl_techniques: finish the run with that one, or restart it."
            )
        return progress["stage"], progress["step"] - progress["done"]

    def progress(self, number: int, step: int, done: int, over: bool, data: Any) -> dict:
        """Return what a checkpoint says beside its arrays; all processes must call this."""
        return {
            "stages": [stage.name for stage in self.stages],
            "stage": number,
            "done": done,
            "over": over,
            "step": step,
            "data": gather_json(data),
            "watchers": {name: watcher.state() for name, watcher in self._named_watchers()},
            "skipped": self._skipped.size,
        }

    def restore(self, progress: dict) -> None:
        """Bring logs back to where a checkpoint was written; a watcher new since begins there."""
        if not is_main_process():
            return
        for name, watcher in self._named_watchers():
            if name in progress["watchers"]:
                watcher.restore(progress["watchers"][name], progress["step"])
        self._skipped.restore(progress["skipped"])

    def _named_watchers(self) -> list[tuple[str, Watcher]]:
        """Return each watcher with its class's name and its place among those of the class."""
        kinds = [type(watcher).__name__ for watcher in self._watchers]
        names = [f"{kind} {kinds[:place].count(kind)}" for place, kind in enumerate(kinds)]
        return list(zip(names, self._watchers, strict=True))

    def tell(self, step: int, values: dict[str, float], pictures: dict | None = None) -> None:
        """Give numbers and pictures to all who watch."""
        for watcher in self._watchers:
            watcher.numbers(step, values)
            for name, pixels in (pictures or {}).items():
                watcher.picture(step, name, pixels)

    def note_skipped(self, step: int, samples: list, loss: float) -> None:
        """Write down a step that was left out, and whose samples it had."""
        row = {"step": step, "loss": repr(loss), "samples": samples}
        if is_main_process():
            self._skipped.append(json.dumps(row) + "\n")
