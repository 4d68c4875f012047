"""StageRun: one stage of a run, step by step."""

from __future__ import annotations

import contextlib
import math
import time
from contextlib import closing
from typing import Any

import keras

from dl_techniques.checkpoints.adapters import save_adapters
from dl_techniques.models.lora import lora_layers
from dl_techniques.optimization.optimizer_table import optimizer_table
from dl_techniques.training.batches_ahead import BatchesAhead
from dl_techniques.training.checkpoint_store import CheckpointStore
from dl_techniques.training.processes import (
    any_process,
    assign_full,
    gather_json,
    is_main_process,
    own_copy,
    process_count,
    process_index,
    whole_weights,
)
from dl_techniques.training.step_meter import StepMeter
from dl_techniques.training.trainer import learning_rates, supervised_tokens
from dl_techniques.training.training_state import assign_state, save_model, state_arrays
from dl_techniques.utils.logger import logger

MODEL_FILE, ADAPTERS_FOLDER = "model.keras", "adapters"
# Of the expected steps: by how many a schedule may miss the end of the data without a warning.
_NEAR = 0.1


class StageRun:
    """One stage in a run.

    Args:
        trainer: The run's `StageTrainer`.
        number: Which of its stages.
        before: Steps of the run before this stage.
        store: Takes the checkpoints.
        report: A `ProgressReport`.
        stop: An event: whether the run shall stop after the running step.
    """

    def __init__(self, trainer, number: int, before: int, store: CheckpointStore, report, stop):
        self._trainer, self._number = trainer, number
        self._stage, self._model = trainer.stages[number], trainer.model
        self._store, self._report, self._stop = store, report, stop
        self._before = before
        self._done = 0
        self._over = False
        self._data: Any = None  # The state of the data behind the last step.
        self._skipped_in_a_row = 0

    def train(self, resumed: tuple | None) -> int:
        """Run the stage from its beginning, or from a checkpoint; return the run's steps then.

        Raises:
            FloatingPointError: too many steps in a row were not finite.
            KeyboardInterrupt: after the saving that a signal asked for.
            ValueError: the data ran out which should have no end, or before the first step.
        """
        stage, strategy = self._stage, self._model.mirrored_strategy
        with contextlib.nullcontext() if strategy is None else strategy.scope():
            stage.apply(self._model)
        expected = sum(s.expected_steps for s in self._trainer.stages[self._number :])
        self._report.total_steps = self._before + expected
        about = "" if stage.planned_steps in (None, stage.steps) else "about "
        steps = f"{about}{stage.expected_steps} steps"
        self._report.say(f"Stage {stage.name}, {steps}\n{_table(self._model)}")
        self._meter = StepMeter(self._model)
        iterator = iter(stage.data)
        if resumed is not None:
            self._go_on(resumed, iterator)
        with closing(BatchesAhead(iterator)) as batches:
            while not self._over:
                if not self._step(batches):
                    self._end_with_data()
                    break
                self._over = self._done == stage.steps
                score, evaluated = self._evaluate()
                due = self._step_number % self._trainer.checkpoint_every == 0 or evaluated
                stopped = any_process(self._stop.is_set())
                if due or self._over or stopped:
                    self._save(score)
                if stopped:
                    self._wait()
                    raise KeyboardInterrupt(
                        f"Stopped after step {self._step_number}; resume to go on."
                    )
        self._wait()
        self._write_result()
        return self._step_number

    def _end_with_data(self) -> None:
        """End the stage after its last whole update, as if that had been its last step."""
        stage, needed = self._stage, self._stage.accumulation_steps
        if not getattr(stage.data, "ends", False):
            raise ValueError("The data ended before the stage: allow more epochs, or fewer steps.")
        if self._done == 0:
            raise ValueError(
                f"Stage {stage.name}: the data ended before the first step, which takes {needed} "
                "batches. Give more data or epochs, or lower batch_size or accumulation_steps."
            )
        self._over = True
        text = "Stage %s: the data ended after %d steps; at most %d were to be taken."
        logger.info(text, stage.name, self._done, stage.steps)
        if abs(self._done - stage.expected_steps) > max(1, _NEAR * stage.expected_steps):
            logger.warning(
                "Stage %s: its learning rates were planned for %d steps, but the data had %d. Set "
                "its steps to %d to have warm-up and decay come to their end with the data.",
                *(stage.name, stage.expected_steps, self._done, self._done),
            )
        if not self._evaluates_by_number():  # Else this step was evaluated and saved.
            self._save(self._evaluate()[0])

    def _go_on(self, resumed: tuple, iterator) -> None:
        step, arrays, progress = resumed
        states = progress["data"]
        # Streams have the same state in every process, but for what each found to be bad.
        own = process_index() if len(states) == process_count() else 0
        self._data = states[own]
        iterator.set_state(self._data)
        assign_state(self._model, arrays, f"step {step} in {self._store.folder}")
        self._trainer.restore(progress)
        if is_main_process():
            self._store.discard_newer(step)
        self._done, self._over = progress["done"], progress["over"]

    def _write_result(self) -> None:
        folder = self._trainer.folder / self._stage.name
        folder.mkdir(parents=True, exist_ok=True)
        if _inner(self._model.optimizer).ema_decay is not None:
            averages = _inner(self._model.optimizer).averaged_values()
            for variable, value in zip(self._model.trainable_variables, averages, strict=True):
                assign_full(variable, value)
        with whole_weights(self._model):
            if not is_main_process():
                return
            if lora_layers(self._model):
                save_adapters(self._model, folder / ADAPTERS_FOLDER)
            else:
                save_model(self._model, folder / MODEL_FILE)

    @property
    def _step_number(self) -> int:
        """The step of the whole run."""
        return self._before + self._done

    def _save(self, score: float | None) -> None:
        self._wait()  # So that two copies of the state are never in memory.
        progress = self._trainer.progress(
            self._number, self._step_number, self._done, self._over, self._data
        )
        arrays = state_arrays(self._model)
        if is_main_process():
            self._store.save(self._step_number, arrays, progress, score)

    def _wait(self) -> None:
        """Wait until the last checkpoint is on the disk."""
        if is_main_process():
            self._store.wait()

    def _evaluate(self) -> tuple[float | None, bool]:
        """Evaluate if it is time; return the score, and whether there was an evaluation."""
        trainer = self._trainer
        if trainer.evaluate is None or not (self._over or self._evaluates_by_number()):
            return None, False
        with self._averaged(), own_copy(self._model):
            found = trainer.evaluate(self._step_number, self._model)
        numbers = {f"evaluation/{name}": value for name, value in found.numbers.items()}
        trainer.tell(self._step_number, numbers, found.pictures)
        texts = " ".join(f"{name} {value:.4g}" for name, value in found.numbers.items())
        self._report.say(f"step {self._step_number} evaluation {texts}")
        return found.score, True

    def _evaluates_by_number(self) -> bool:
        """Tell whether this step is evaluated even if the stage goes on."""
        every = self._trainer.evaluate_every if self._trainer.evaluate is not None else None
        return every is not None and self._step_number % every == 0

    def _averaged(self):
        """Return a context in which the model has its averaged weights, if there are any."""
        optimizer = _inner(self._model.optimizer)
        if optimizer.ema_decay is None:
            return contextlib.nullcontext()
        return optimizer.averaged_weights()

    def _step(self, batches: BatchesAhead) -> bool:
        """Update the weights once; return False, with the weights as they are, if the data ends."""
        began, waited, flops, counts = time.perf_counter(), 0.0, 0, _Counts()
        for _ in range(self._stage.accumulation_steps):
            asked = time.perf_counter()
            item = batches.next()
            if item is None:
                return False
            (inputs, labels), data, names = item
            waited += time.perf_counter() - asked
            logs = self._model.train_on_batch(inputs, labels, return_dict=True)
            counts.add(inputs, labels, names, {k: float(v) for k, v in logs.items()})
            flops += self._meter.flops(inputs)
        self._done, self._data = self._done + 1, data
        seconds = time.perf_counter() - began
        speed = {**self._meter.values(flops, seconds), "speed/data_wait_seconds": waited}
        self._tell(counts, seconds, speed)
        self._check_finite(counts)
        return True

    def _tell(self, counts: _Counts, seconds: float, speed: dict[str, float]) -> None:
        optimizer = _inner(self._model.optimizer)
        rates, means = learning_rates(optimizer), counts.means()
        values = {
            **{f"train/{name}": value for name, value in means.items()},
            "speed/supervised_tokens_per_second": counts.learned / seconds,
            "speed/tokens_per_second": counts.tokens / seconds,
            "speed/seconds": seconds,
            **speed,
            "skipped_steps": optimizer.skipped_steps,
            **{f"learning_rate/{name}": rate for name, rate in rates.items()},
            **{f"gradient_norm/{name}": norm for name, norm in optimizer.gradient_norms.items()},
        }
        if self._trainer.on_step is not None:
            values |= self._trainer.on_step(self._step_number, self._model) or {}
        self._trainer.tell(self._step_number, values)
        self._report.step(
            {
                "step": self._step_number,
                "epoch": self._number + 1,
                "loss": means["loss"],
                "accuracy": means.get("accuracy", math.nan),
                "learning_rates": rates,
                "tokens_per_second": counts.learned / seconds,
            }
        )

    def _check_finite(self, counts: _Counts) -> None:
        loss, step = counts.means()["loss"], self._step_number
        skipped = _inner(self._model.optimizer).skipped_in_a_row
        if skipped == 0 and math.isfinite(loss):
            self._skipped_in_a_row = 0
            return
        # A LossScaleOptimizer leaves steps out by itself, uncounted.
        self._skipped_in_a_row = max(skipped, self._skipped_in_a_row + 1)
        samples = [name for names in gather_json(counts.samples) for name in names]
        self._trainer.note_skipped(step, samples, loss)
        self._report.say(f"Step {step} was left out: loss {loss}, samples {samples}")
        if self._skipped_in_a_row >= self._trainer.max_skipped:
            self._wait()
            raise FloatingPointError(
                f"{self._skipped_in_a_row} steps in a row were not finite, up to step {step}. The "
                f"newest checkpoint is step {self._store.latest()}; the samples are in "
                "skipped.jsonl. Lower the learning rate, or train in bfloat16 or float32."
            )


class _Counts:
    """What the batches of one step had, and their means by learned tokens."""

    def __init__(self):
        self.learned, self.tokens, self.samples = 0, 0, []
        self._sums: dict[str, list[float]] = {}

    def add(self, inputs, labels, samples, logs):
        learned = supervised_tokens(labels)
        mask = inputs.get("attention_mask")
        self.learned += learned
        self.tokens += int(labels.size if mask is None else mask.sum())
        self.samples += samples
        for name, value in logs.items():
            # What a batch knows nothing of (a source that it lacks) is left out.
            if name in ("loss", "accuracy") or not math.isnan(value):
                total = self._sums.setdefault(name, [0.0, 0])
                total[0] += learned * value
                total[1] += learned

    def means(self) -> dict[str, float]:
        return {name: total / max(1, learned) for name, (total, learned) in self._sums.items()}


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
