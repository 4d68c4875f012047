"""What a run leaves to look at: history.json and a picture of its curves."""

import importlib.util
import json
import os
from pathlib import Path

from dl_techniques.utils.logger import logger


def write_history(folder: str | Path, history: dict) -> None:
    """Write `history.json` and, with matplotlib installed, `loss_curve.png` into the folder."""
    folder = Path(folder)
    partial = folder / "history.json.partial"
    partial.write_text(json.dumps(history, indent=1))
    os.replace(partial, folder / "history.json")
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("No loss_curve.png: install dl_techniques[plot] to have it drawn.")
    elif history["steps"]:
        plot_history(history, folder / "loss_curve.png")


def draw_log(log: Path, path: Path) -> None:
    """Draw the `log.jsonl` of a `StageTrainer`, with matplotlib installed, as a PNG file."""
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("No %s: install dl_techniques[plot] to have it drawn.", path.name)
        return
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [
        {"step": row["step"], **{name: row[f"train/{name}"] for name in ("loss", "accuracy")}}
        for row in rows
        if row.get("train/loss") is not None
    ]
    plot_history({"steps": steps, "epochs": []}, path)


def plot_history(history: dict, path: str | Path) -> None:
    """Draw loss and accuracy over the steps, training and validation, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        steps = [row["step"] for row in history["steps"]]
        values = [row[name] for row in history["steps"]]
        axes.plot(steps, values, color="lightsteelblue", linewidth=0.8)
        axes.plot(steps, _smoothed(values), color="navy", label="training")
        held_out = [row for row in history["epochs"] if f"val_{name}" in row]
        if held_out:
            axes.plot(
                [row["step"] for row in held_out],
                [row[f"val_{name}"] for row in held_out],
                color="darkorange",
                marker="o",
                markersize=3,
                label="validation",
            )
        axes.set_xlabel("step")
        axes.set_title(f"next-token {name}")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def _smoothed(values: list[float], share: float = 0.05) -> list[float]:
    """Return the exponential average over about the last 20 values."""
    smoothed, average = [], values[0]
    for value in values:
        average += share * (value - average)
        smoothed.append(average)
    return smoothed
