"""The checkpoints of a training run, read; another process may be writing them."""

import contextlib
import math
import os
import pathlib
import re
import warnings

from dl_techniques.training.checkpoint_folder import StoredArrays, read_checkpoint, read_score

# A step saved again gets a revision, so that no moment is without a complete checkpoint.
CHECKPOINT = re.compile(r"step_(\d{9,})(?:\.(\d+))?")


class CheckpointReader:
    """Finds and reads the folders `step_000001234` of a `CheckpointStore`; changes nothing.

    Args:
        folder: Where the checkpoints lie.
        best: "min" or "max": which score is the best. One that is not finite never is; of equal
            ones the earlier is.

    Raises:
        ValueError: if `best` is something else.
    """

    def __init__(self, folder: str | os.PathLike, best: str = "min"):
        if best not in ("min", "max"):
            raise ValueError(f"best must be 'min' or 'max', got {best!r}.")
        self.folder = pathlib.Path(folder)
        self._sign = 1 if best == "min" else -1

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, oldest first."""
        return sorted(self._paths())

    def latest(self) -> int | None:
        """Return the newest complete checkpoint's step, or None."""
        return max(self._paths(), default=None)

    def best(self) -> int | None:
        """Return the step with the best score, or None if none has a finite one."""
        return next(iter(self._ranked(self._paths())), None)

    def load(self, step: int) -> tuple[StoredArrays, dict]:
        """Return (arrays, progress) of a checkpoint, after its checksums were found right.

        Args:
            step: One of `steps()`.

        Returns:
            The arrays, as a mapping that reads each on access, and the progress.

        Raises:
            ValueError: if it does not exist, or naming what is damaged.
        """
        paths = self._paths()
        if step not in paths:
            raise ValueError(f"{self.folder} has no step {step}; it has {sorted(paths)}.")
        return read_checkpoint(paths[step])

    def load_latest(self) -> tuple[int, StoredArrays, dict]:
        """Return (step, arrays, progress) of the newest sound checkpoint.

        A damaged one is passed over with a warning. It stays; `CheckpointStore.discard_newer`
        removes it.

        Raises:
            ValueError: if none is sound, listing what was found.
        """
        problems = []
        for step in reversed(self.steps()):
            try:
                return step, *self.load(step)
            except ValueError as error:
                problems.append(str(error))
                warnings.warn(f"Step {step} is passed over: {error}", stacklevel=2)
        found = " ".join(problems) or "It holds none at all."
        raise ValueError(f"{self.folder} holds no sound checkpoint. {found}")

    def _folders(self):
        """Return sorted (step, revision, path), superseded revisions included."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(
                (int(name[1]), int(name[2] or 0), path)
                for path in self.folder.iterdir()
                if (name := CHECKPOINT.fullmatch(path.name)) and path.is_dir()
            )
        return []

    def _paths(self):
        """Return step -> the folder of its last revision."""
        return {step: path for step, _, path in self._folders()}

    def _ranked(self, paths):
        """Return the steps that have a finite score, the best first."""
        scores = {step: self._score(path) for step, path in paths.items()}
        finite = (k for k, score in scores.items() if score is not None and math.isfinite(score))
        return sorted(finite, key=lambda step: (self._sign * scores[step], step))

    def _score(self, path):
        try:
            return read_score(path)
        except ValueError as error:
            if path.exists():  # Else its writer has just removed it.
                warnings.warn(f"A score is unknown: {error}", stacklevel=2)
            return None
