"""Shows a run's progress: a bar on a terminal, a line every few steps elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dl_techniques.training.processes import is_main_process


class ProgressReport:
    """A context manager that is told each step's results.

    Args:
        total_steps: Steps of the whole run; the attribute may be changed as more is known.
        done_steps: Steps done before (a resumed run).
        log_every: Steps between lines where there is no terminal.
    """

    def __init__(self, total_steps: int, done_steps: int, log_every: int):
        self.console = Console(quiet=not is_main_process())
        self.total_steps = total_steps
        self.log_every = log_every
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]} step {task.completed}/{task.total}"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=total_steps, completed=done_steps, epoch=1)
        self.started = time.perf_counter()
        self.first_step = done_steps

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_):
        self.bar.stop()

    def step(self, row: dict) -> None:
        """Show one step: a row of the history."""
        rates = " ".join(f"{k}={v:.2g}" for k, v in row["learning_rates"].items())
        text = (
            f"loss {row['loss']:.4f} accuracy {row['accuracy']:.1%} "
            f"{row['tokens_per_second']:.0f} supervised tokens/s lr {rates}"
        )
        # Data may have more steps than were expected.
        total = max(self.total_steps, row["step"])
        self.bar.update(
            self.task, completed=row["step"], total=total, description=text, epoch=row["epoch"]
        )
        done = row["step"] - self.first_step
        if not self.console.is_terminal and row["step"] % self.log_every == 0:
            left = (time.perf_counter() - self.started) / done * (total - row["step"])
            self.say(f"step {row['step']}/{total} {text} {left:.0f} s left")

    def say(self, line: str) -> None:
        """Print a line beside the bar."""
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)
