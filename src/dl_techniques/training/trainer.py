"""NanoVLMTrainer: a training loop that can be stopped and goes on as if it had not been."""

import math
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np

from dl_techniques.losses.metrics import NextTokenAccuracy
from dl_techniques.losses.nanovlm_loss import NanoVLMLoss
from dl_techniques.training.history import write_history
from dl_techniques.training.progress import ProgressReport
from dl_techniques.training.setup import default_optimizer
from dl_techniques.training.training_state import load_training_state, save_training_state


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
        """Train; a first ctrl-C stops after the running step and keeps the state.

        Args:
            dataset: A `VQADataset`, or any indexable data set of batches with `set_epoch`.
            epochs: Passes over the data, all in all.
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
            ValueError: if there is nothing to resume, or it belongs to another run.
        """
        total = epochs * len(dataset)
        done = self._resumed_step(dataset) if resume else 0
        report = ProgressReport(total, done, log_every)
        with report, _stop_on_interrupt() as stop, ThreadPoolExecutor(1) as pool:
            for epoch in range(done // len(dataset), epochs):
                dataset.set_epoch(epoch)
                finished = self._epoch(dataset, epoch, done % len(dataset), pool, stop, report)
                done = self._step_count()
                if not finished:
                    self._save(len(dataset))
                    raise KeyboardInterrupt(
                        f"Stopped after step {done} of {total}; resume to go on."
                    )
                self._end_epoch(epoch, validation_data, report)
                if (epoch + 1) % save_every_epochs == 0:
                    self._save(len(dataset), f"nanovlm_checkpoint_epoch_{epoch + 1}.keras")
        self._save(len(dataset), "nanovlm_final.keras")
        return self.history

    def _epoch(self, dataset, epoch, start, pool, stop, report):
        """Run the rest of one epoch; return whether it came to its end."""
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
                return False
        return True

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

    def _resumed_step(self, dataset):
        if self.output_dir is None:
            raise ValueError("resume=True needs the trainer's output_dir.")
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        progress = load_training_state(self.output_dir, self.model)
        if progress["steps_per_epoch"] != len(dataset):
            raise ValueError(
                f"The run to resume has {progress['steps_per_epoch']} steps per epoch, this data "
                f"set has {len(dataset)}: give the same data and batch size."
            )
        self.history = progress["history"]
        for name, values in progress["metrics"].items():
            metric = getattr(self, name)
            for variable, value in zip(metric.variables, values, strict=True):
                variable.assign(value)
        return self._step_count()

    def _save(self, steps_per_epoch, model_file=None):
        if self.output_dir is None:
            return
        self.output_dir.mkdir(parents=True, exist_ok=True)
        metrics = {
            metric.name: [float(variable.numpy()) for variable in metric.variables]
            for metric in (self.train_loss, self.train_accuracy)
        }
        progress = {
            "steps_per_epoch": steps_per_epoch,
            "history": self.history,
            "metrics": metrics,
        }
        save_training_state(self.output_dir, self.model, progress)
        write_history(self.output_dir, self.history)
        if model_file is not None:
            self.model.save(self.output_dir / model_file, include_optimizer=False)


def supervised_tokens(labels, ignore_index: int = -100) -> int:
    """Return how many labels of int[B, S] a batch learns (the first of a row cannot be)."""
    return int((np.asarray(labels)[:, 1:] != ignore_index).sum())


def learning_rates(optimizer) -> dict[str, float]:
    """Return the learning rate of every component, or of "all" for a plain optimizer."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if hasattr(inner, "learning_rates"):
        return inner.learning_rates
    return {"all": float(keras.ops.convert_to_numpy(inner.learning_rate))}


@contextmanager
def _stop_on_interrupt():
    """Turn the first ctrl-C into a set flag, so that no step is cut in two; the second raises."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.getsignal(signal.SIGINT)

    def handle(signum, frame):
        stop.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
