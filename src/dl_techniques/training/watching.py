"""Where a run shows itself: a log of its own, TensorBoard, Weights & Biases."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dl_techniques.utils.appended_file import AppendedFile


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation of a model found.

    Attributes:
        numbers: By name.
        pictures: Name -> uint8[H, W, 3].
        score: What ranks checkpoints, the higher the better; None: nothing does.
    """

    numbers: Mapping[str, float]
    pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    score: float | None = None


class Watcher(Protocol):
    """Takes what a run tells about its steps."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers by name ("train/loss")."""

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Take a picture, uint8[H, W, 3]."""

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, JSON-ready."""

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """Forget what was told after this step."""

    def close(self) -> None:
        """Write all that is left."""


class LogFile:
    """One JSON object per step in a file, cut back where a run is resumed.

    Args:
        path: The file.
    """

    def __init__(self, path: str | os.PathLike):
        self._file = AppendedFile(path)

    def numbers(self, step, values):
        """Append a line; what is not finite becomes null."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.append(json.dumps({"step": step, **finite}) + "\n")

    def picture(self, step, name, pixels):
        """Do nothing: pictures are files of their own."""

    def state(self):
        """Return how long the file is."""
        return {"bytes": self._file.size}

    def restore(self, state, step):
        """Cut off what the file has beyond the state."""
        self._file.restore(state["bytes"])

    def close(self):
        """Do nothing: every line is written at once."""


class TensorBoard:
    """Event files that `tensorboard --logdir` shows.

    Args:
        folder: Where they go.
    """

    def __init__(self, folder: str | os.PathLike):
        self._folder = Path(folder)
        self._writer = None
        self._first_step: int | None = None

    def _open(self):
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # TensorBoard hides what older files say about steps from here on.
            self._writer = SummaryWriter(str(self._folder), purge_step=self._first_step)
        return self._writer

    def numbers(self, step, values):
        """Add a point to each curve."""
        for name, value in values.items():
            self._open().add_scalar(name, value, step)

    def picture(self, step, name, pixels):
        """Add a picture."""
        self._open().add_image(name, pixels, step, dataformats="HWC")

    def state(self):
        """Return nothing: the step is enough."""
        return {}

    def restore(self, state, step):
        """Begin a file that takes the place of older ones from the next step on."""
        self.close()
        self._first_step = step + 1

    def close(self):
        """Write all that is left."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WeightsAndBiases:
    """A run of Weights & Biases, which is gone on with under the same id.

    Args:
        project: The project's name.
        **options: Of `wandb.init`.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, project: str, **options: Any):
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "Weights & Biases needs its package: pip install 'dl_techniques[track]'."
            ) from error
        self._wandb = wandb
        self._options = {"project": project, **options}
        self._run = None

    def _open(self):
        if self._run is None:
            self._run = self._wandb.init(**self._options)
        return self._run

    def numbers(self, step, values):
        """Log the numbers of a step."""
        self._open().log(dict(values), step=step)

    def picture(self, step, name, pixels):
        """Log a picture."""
        self._open().log({name: self._wandb.Image(pixels)}, step=step)

    def state(self):
        """Return the project and the run's id."""
        run = self._options.get("id") if self._run is None else self._run.id
        return {"project": self._options["project"], "id": run}

    def restore(self, state, step):
        """Go on with the run of this id, from this step; another project gets a run of its own."""
        self.close()
        if state["id"] is not None and state["project"] == self._options["project"]:
            self._options |= {"id": state["id"], "resume": "must"}

    def close(self):
        """End the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None
