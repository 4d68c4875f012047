"""StageTrainer: runs a list of stages, and can be killed at any moment without losing its way."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import keras

from dl_techniques.optimization.optimizer_table import optimizer_table
from dl_techniques.training.checkpoint_store import CheckpointStore
from dl_techniques.training.progress import ProgressReport
from dl_techniques.training.stages import Stage
from dl_techniques.training.stop_signals import stop_signals
from dl_techniques.training.trainer import learning_rates, supervised_tokens
from dl_techniques.training.training_state import assign_state, save_model, state_arrays
from dl_techniques.training.watching import LogFile, TensorBoard, Watcher
from dl_techniques.utils.appended_file import AppendedFile

MODEL_FILE = "model.keras"


class StageTrainer:
    """Trains a model stage by stage.

    The folder gets `checkpoints/` (see `CheckpointStore`), `log.jsonl` (one line per step),
    `tensorboard/`, `skipped.jsonl` (steps that were left out, with the samples of their batches)
    and, after each stage, `<stage>/model.keras`.

    Args:
        model: A `VisionLanguageModel`.
        stages: In their order; names must differ.
        folder: Where everything goes.
        checkpoint_every: Steps between checkpoints; there is also one at the end of each stage and
            when the run is stopped.
        keep_last: See `CheckpointStore`.
        log_every: Steps between lines where there is no terminal.
        max_skipped: A run ends when so many steps in a row were not finite.
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
        watchers: Sequence[Watcher] = (),
        on_step: Callable[[int, keras.Model], dict[str, float] | None] | None = None,
    ):
        names = [stage.name for stage in stages]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"Stages need names of their own, got {names}.")
        if min(checkpoint_every, keep_last, log_every, max_skipped) < 1:
            raise ValueError("checkpoint_every, keep_last, log_every and max_skipped must be >= 1.")
        self.model = model
        self.stages = list(stages)
        self.folder = Path(folder)
        self._checkpoint_every = checkpoint_every
        self._keep_last = keep_last
        self._log_every = log_every
        self._max_skipped = max_skipped
        self._watchers: list[Watcher] = [
            LogFile(self.folder / "log.jsonl"),
            TensorBoard(self.folder / "tensorboard"),
            *watchers,
        ]
        self._skipped = AppendedFile(self.folder / "skipped.jsonl")
        self._on_step = on_step

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
        total = sum(stage.steps for stage in self.stages)
        with CheckpointStore(self.folder / "checkpoints", self._keep_last, 0) as store:
            if store.steps() and not resume:
                raise ValueError(
                    f"{self.folder} holds the checkpoints of a run. Resume it, or choose another "
                    "folder."
                )
            done = store.load_latest() if resume else None
            progress = None if done is None else done[2]
            first = 0 if progress is None else self._stage_number(progress)
            report = ProgressReport(total, 0 if done is None else done[0], self._log_every)
            with report, stop_signals() as stop:
                for number in range(first, len(self.stages)):
                    run = _StageRun(self, number, store, report, stop)
                    run.train(done if number == first else None)
                for watcher in self._watchers:
                    watcher.close()

    def _stage_number(self, progress: dict) -> int:
        names = [stage.name for stage in self.stages]
        if progress["stages"] != names:
            raise ValueError(
                f"The run to resume has the stages {progress['stages']}, this one has {names}."
            )
        return progress["stage"]

    def checkpoint(self, number: int, step: int, done: int, data: Any) -> dict:
        """Return what a checkpoint says beside its arrays."""
        return {
            "stages": [stage.name for stage in self.stages],
            "stage": number,
            "done": done,
            "step": step,
            "data": data,
            "watchers": [watcher.state() for watcher in self._watchers],
            "skipped": self._skipped.size,
        }

    def restore(self, progress: dict) -> None:
        """Bring logs back to where a checkpoint was written."""
        for watcher, state in zip(self._watchers, progress["watchers"], strict=True):
            watcher.restore(state, progress["step"])
        self._skipped.restore(progress["skipped"])

    def tell(self, step: int, values: dict[str, float]) -> None:
        """Give a step's numbers to all who watch."""
        for watcher in self._watchers:
            watcher.numbers(step, values)

    def note_skipped(self, step: int, samples: list, loss: float) -> None:
        """Write down a step that was left out, and whose samples it had."""
        row = {"step": step, "loss": repr(loss), "samples": samples}
        self._skipped.append(json.dumps(row) + "\n")


class _StageRun:
    """One stage in a run."""

    def __init__(self, trainer: StageTrainer, number: int, store: CheckpointStore, report, stop):
        self._trainer, self._number = trainer, number
        self._stage = trainer.stages[number]
        self._store, self._report, self._stop = store, report, stop
        self._before = sum(stage.steps for stage in trainer.stages[:number])
        self._done = 0

    def train(self, resumed: tuple | None) -> None:
        """Run the stage from its beginning, or from a checkpoint."""
        trainer, stage, model = self._trainer, self._stage, self._trainer.model
        stage.apply(model)
        model.optimizer.build(model.trainable_variables)
        self._report.say(f"Stage {stage.name}, {stage.steps} steps\n{_table(model)}")
        iterator, data = iter(stage.data), None
        if resumed is not None:
            step, arrays, progress = resumed
            assign_state(model, arrays, f"step {step} in {self._store.folder}")
            trainer.restore(progress)
            self._store.discard_newer(step)
            self._done, data = progress["done"], progress["data"]
            iterator.set_state(data)
        with closing(_Ahead(iterator)) as batches:
            while self._done < stage.steps:
                data = self._step(batches)
                due = self._step_number % trainer._checkpoint_every == 0
                if due or self._done == stage.steps or self._stop.is_set():
                    self._save(data)
                if self._stop.is_set():
                    self._store.wait()
                    raise KeyboardInterrupt(
                        f"Stopped after step {self._step_number}; resume to go on."
                    )
        self._store.wait()
        folder = trainer.folder / stage.name
        folder.mkdir(parents=True, exist_ok=True)
        save_model(model, folder / MODEL_FILE)

    @property
    def _step_number(self) -> int:
        """The step of the whole run."""
        return self._before + self._done

    def _save(self, data: Any) -> None:
        self._store.wait()  # So that two copies of the state are never in memory.
        progress = self._trainer.checkpoint(self._number, self._step_number, self._done, data)
        self._store.save(self._step_number, state_arrays(self._trainer.model), progress)

    def _step(self, batches: _Ahead) -> Any:
        """Update the weights once; return the state of the data behind it."""
        began, waited, tokens = time.perf_counter(), 0.0, 0
        sums, samples = {"loss": 0.0, "accuracy": 0.0}, []
        for _ in range(self._stage.accumulation_steps):
            asked = time.perf_counter()
            (inputs, labels), data, names = batches.next()
            waited += time.perf_counter() - asked
            logs = self._trainer.model.train_on_batch(inputs, labels, return_dict=True)
            count = supervised_tokens(labels)
            tokens += count
            samples += names
            for name in sums:
                sums[name] += count * float(logs[name])
        self._done += 1
        seconds = time.perf_counter() - began
        row = {name: total / max(1, tokens) for name, total in sums.items()}
        self._tell(row, tokens, seconds, waited)
        self._check_finite(row["loss"], samples)
        return data

    def _tell(self, row: dict, tokens: int, seconds: float, waited: float) -> None:
        trainer, optimizer = self._trainer, _inner(self._trainer.model.optimizer)
        rates = learning_rates(trainer.model.optimizer)
        values = {
            "train/loss": row["loss"],
            "train/accuracy": row["accuracy"],
            "speed/supervised_tokens_per_second": tokens / seconds,
            "speed/seconds": seconds,
            "speed/data_wait_seconds": waited,
            "skipped_steps": optimizer.skipped_steps,
            **{f"learning_rate/{name}": rate for name, rate in rates.items()},
            **{f"gradient_norm/{name}": norm for name, norm in optimizer.gradient_norms.items()},
        }
        if trainer._on_step is not None:
            values |= trainer._on_step(self._step_number, trainer.model) or {}
        trainer.tell(self._step_number, values)
        self._report.step(
            {
                "step": self._step_number,
                "epoch": self._number + 1,
                **row,
                "learning_rates": rates,
                "tokens_per_second": tokens / seconds,
            }
        )

    def _check_finite(self, loss: float, samples: list) -> None:
        skipped = _inner(self._trainer.model.optimizer).skipped_in_a_row
        if skipped == 0 and math.isfinite(loss):
            return
        self._trainer.note_skipped(self._step_number, samples, loss)
        self._report.say(f"Step {self._step_number} was left out: loss {loss}, samples {samples}")
        if skipped >= self._trainer._max_skipped:
            self._store.wait()
            raise FloatingPointError(
                f"{skipped} steps in a row were not finite, up to step {self._step_number}. The "
                f"newest checkpoint is step {self._store.latest()}; the samples are in "
                "skipped.jsonl. Lower the learning rate, or train in bfloat16 or float32."
            )


class _Ahead:
    """Takes the next batch from an iterator while a step runs on the last one.

    What comes next is (batch, state of the iterator behind it, ids of its samples).
    """

    def __init__(self, iterator: Iterator):
        self._iterator = iterator
        self._pool = ThreadPoolExecutor(1)
        self._upcoming = self._pool.submit(self._read)

    def _read(self) -> tuple:
        batch = next(self._iterator, None)
        if batch is None:
            raise ValueError("The data ended before the stage: allow more epochs, or fewer steps.")
        names = getattr(self._iterator, "sample_ids", list)()
        return batch, self._iterator.get_state(), names

    def next(self) -> tuple:
        """Return what comes next."""
        item = self._upcoming.result()
        self._upcoming = self._pool.submit(self._read)
        return item

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


def _table(model: keras.Model) -> str:
    """Return what is trained, how fast, and the memory of its optimizer state, as lines."""
    lines = [f"{'trained':<44}{'parameters':>14}{'rate':>10}{'state MB':>10}"]
    for row in optimizer_table(model.optimizer, model.trainable_variables):
        rate = "" if row.learning_rate is None else f"{row.learning_rate:.2e}"
        lines.append(
            f"{row.pattern:<44}{row.parameters:>14,}{rate:>10}{row.state_bytes / 1e6:>10,.1f}"
        )
    return "\n".join(lines)


def _inner(optimizer):
    """Return the optimizer inside one that scales the loss."""
    return getattr(optimizer, "inner_optimizer", optimizer)
