"""NanoVLMTrainer: a training loop that can be stopped and goes on as if it had not been."""

import hashlib
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np

from dl_techniques.losses.metrics import NextTokenAccuracy
from dl_techniques.losses.nanovlm_loss import NanoVLMLoss
from dl_techniques.training.history import write_history
from dl_techniques.training.progress import ProgressReport
from dl_techniques.training.setup import default_optimizer
from dl_techniques.training.stop_signals import stop_signals
from dl_techniques.training.training_state import (
    load_training_state,
    save_model,
    save_training_state,
)


class NanoVLMTrainer:
    """Trains a VisionLanguageModel on batches `(inputs, labels)`, compiled where the backend can.

    Args:
        model: The model; it is compiled here.
        loss_fn: Default `NanoVLMLoss()`.
        optimizer: Any Keras optimizer; default AdamW per component (see
            `setup_different_learning_rates`). Under a mixed_float16 policy Keras adds loss scaling.
        output_dir: Where checkpoints, `history.json` and `loss_curve.png` go; None writes nothing.
        **compile_options: Further arguments of `keras.Model.compile`.

    Attributes:
        train_loss, train_accuracy: Metrics over the running epoch, weighted by tokens.
        history: `{"steps": [...], "epochs": [...]}`, as written to `history.json`.
    """

    def __init__(self, model, loss_fn=None, optimizer=None, output_dir=None, **compile_options):
        self.model = model
        self.loss_fn = loss_fn or NanoVLMLoss()
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.train_loss = keras.metrics.Mean(name="train_loss")
        self.train_accuracy = keras.metrics.Mean(name="train_accuracy")
        self.history = {"steps": [], "epochs": []}
        model.compile(
            optimizer=optimizer or default_optimizer(model),
            loss=self.loss_fn,
            metrics=[NextTokenAccuracy(name="accuracy")],
            **compile_options,
        )

    def train_step(self, batch) -> dict:
        """Update the weights on one batch `(inputs, labels)`; return its loss and accuracy."""
        inputs, labels = batch
        logs = self.model.train_on_batch(inputs, labels, return_dict=True)
        logs = {name: float(logs[name]) for name in ("loss", "accuracy")}
        tokens = supervised_tokens(labels)
        if tokens:
            self.train_loss.update_state(logs["loss"], sample_weight=tokens)
            self.train_accuracy.update_state(logs["accuracy"], sample_weight=tokens)
        return logs

    def evaluate(self, dataset) -> dict:
        """Return the token-weighted `{"loss", "accuracy", "tokens"}` over all batches."""
        sums, tokens = np.zeros(2), 0
        for i in range(len(dataset)):
            inputs, labels = dataset[i]
            logs = self.model.test_on_batch(inputs, labels, return_dict=True)
            count = supervised_tokens(labels)
            sums += count * np.array([float(logs["loss"]), float(logs["accuracy"])])
            tokens += count
        loss, accuracy = sums / max(tokens, 1)
        return {"loss": loss, "accuracy": accuracy, "tokens": tokens}

    def fit(
        self,
        dataset,
        epochs: int = 10,
        validation_data=None,
        log_every: int = 10,
        save_every_epochs: int = 5,
        resume: bool = False,
    ) -> dict:
        """Train; a first ctrl-C or SIGTERM stops after the running step and keeps the state.

        Args:
            dataset: A `VQADataset`, or any indexable data set of batches with `set_epoch`.
            epochs: Passes over the data, all in all. A new run has a new `history`.
            validation_data: Batches to evaluate on after every epoch.
            log_every: Steps between lines where there is no terminal.
            save_every_epochs: Epochs between `nanovlm_checkpoint_epoch_{n}.keras` files; the state
                to resume from is saved with each and when the run stops.
            resume: Go on from the state in `output_dir`: the same data, losses and weights follow
                as if the run had not been stopped.

        Returns:
            `history`.

        Raises:
            FloatingPointError: if the loss is not finite.
            KeyboardInterrupt: after the step, and the saving, that ctrl-C did not interrupt.
            ValueError: if a number is below 1, there is nothing to resume, or it belongs to
                another run.
        """
        if min(epochs, log_every, save_every_epochs) < 1:
            raise ValueError(
                f"epochs={epochs}, log_every={log_every} and save_every_epochs="
                f"{save_every_epochs} must be at least 1."
            )
        data = {"steps_per_epoch": len(dataset), "first_batch": _first_batch_digest(dataset)}
        total = epochs * len(dataset)
        done = self._resumed_step(data) if resume else self._new_run()
        report = ProgressReport(total, done, log_every)
        with report, stop_signals() as stop, ThreadPoolExecutor(1) as pool:
            for epoch in range(done // len(dataset), epochs):
                dataset.set_epoch(epoch)
                self._epoch(dataset, epoch, done % len(dataset), pool, stop, report)
                done = self._step_count()
                name = None
                if done == (epoch + 1) * len(dataset):
                    self._end_epoch(epoch, validation_data, report)
                    if (epoch + 1) % save_every_epochs == 0:
                        name = f"nanovlm_checkpoint_epoch_{epoch + 1}.keras"
                stopped = stop.is_set()
                if name or stopped:
                    self._save(data, name)
                if stopped:
                    raise KeyboardInterrupt(
                        f"Stopped after step {done} of {total}; resume to go on."
                    )
        self._save(data, "nanovlm_final.keras")
        return self.history

    def _new_run(self):
        """Forget an earlier run's records; return the number of steps done: none."""
        self.history = {"steps": [], "epochs": []}
        for metric in (self.train_loss, self.train_accuracy):
            metric.reset_state()
        return 0

    def _epoch(self, dataset, epoch, start, pool, stop, report):
        """Run the rest of one epoch, or up to the step during which `stop` is set."""
        upcoming = pool.submit(dataset.__getitem__, start)
        for i in range(start, len(dataset)):
            began = time.perf_counter()
            batch = upcoming.result()
            if i + 1 < len(dataset):
                upcoming = pool.submit(dataset.__getitem__, i + 1)
            logs = self.train_step(batch)
            seconds = time.perf_counter() - began
            row = {
                "step": self._step_count() + 1,
                "epoch": epoch + 1,
                **logs,
                "learning_rates": learning_rates(self.model.optimizer),
                "supervised_tokens": supervised_tokens(batch[1]),
                "seconds": seconds,
                "tokens_per_second": supervised_tokens(batch[1]) / seconds,
            }
            if not math.isfinite(row["loss"]):
                raise FloatingPointError(f"The loss is {row['loss']} at step {row['step']}.")
            self.history["steps"].append(row)
            report.step(row)
            if stop.is_set():
                return

    def _end_epoch(self, epoch, validation_data, report):
        row = {"epoch": epoch + 1, "step": self._step_count()}
        for metric in (self.train_loss, self.train_accuracy):
            row[metric.name] = float(metric.result())
            metric.reset_state()
        if validation_data is not None:
            result = self.evaluate(validation_data)
            row |= {f"val_{name}": result[name] for name in ("loss", "accuracy")}
        self.history["epochs"].append(row)
        report.say(" ".join(f"{k} {v:.4g}" for k, v in row.items()))

    def _step_count(self):
        return self.history["steps"][-1]["step"] if self.history["steps"] else 0

    def _resumed_step(self, data):
        if self.output_dir is None:
            raise ValueError("resume=True needs the trainer's output_dir.")
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        progress = load_training_state(
            self.output_dir, self.model, lambda saved: _check_same_data(saved.get("data"), data)
        )
        self.history = progress["history"]
        for name, values in progress["metrics"].items():
            metric = getattr(self, name)
            for variable, value in zip(metric.variables, values, strict=True):
                variable.assign(value)
        return self._step_count()

    def _save(self, data, model_file=None):
        if self.output_dir is None:
            return
        self.output_dir.mkdir(parents=True, exist_ok=True)
        metrics = {
            metric.name: [float(variable.numpy()) for variable in metric.variables]
            for metric in (self.train_loss, self.train_accuracy)
        }
        progress = {
            "data": data,
            "history": self.history,
            "metrics": metrics,
        }
        save_training_state(self.output_dir, self.model, progress)
        write_history(self.output_dir, self.history)
        if model_file is not None:
            save_model(self.model, self.output_dir / model_file)


def _first_batch_digest(dataset):
    """Return what tells this data, order and batch size from others: a hash of some labels."""
    dataset.set_epoch(0)
    labels = np.ascontiguousarray(dataset[0][1])
    return hashlib.blake2b(repr(labels.shape).encode() + labels.tobytes()).hexdigest()[:32]


def _check_same_data(saved, data):
    if saved != data:
        raise ValueError(
            f"The run to resume was on other data: {saved}, this is {data}. Give the same data, "
            "batch size and seed."
        )


def supervised_tokens(labels, ignore_index: int = -100) -> int:
    """Return how many labels of int[B, S] a batch learns (the first of a row cannot be)."""
    return int((np.asarray(labels)[:, 1:] != ignore_index).sum())


def learning_rates(optimizer) -> dict[str, float]:
    """Return the learning rate of every component, or of "all" for a plain optimizer."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if hasattr(inner, "learning_rates"):
        return inner.learning_rates
    return {"all": float(keras.ops.convert_to_numpy(inner.learning_rate))}
