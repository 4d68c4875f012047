"""The checkpoints of a training run: written in the background, whole, and kept sparingly."""

import concurrent.futures
import numbers
import os
import pathlib
import re
import shutil
from collections.abc import Mapping

import numpy as np

from dl_techniques.training.checkpoint_folder import (
    WRITING,
    checked_arrays,
    checked_progress,
    sync_folder,
    write_checkpoint,
)
from dl_techniques.training.checkpoint_reader import CHECKPOINT, CheckpointReader
from dl_techniques.training.folder_lock import lock_folder

REMOVING = ".removing_"
_LEFTOVER = re.compile(f"({re.escape(WRITING)}|{re.escape(REMOVING)}){CHECKPOINT.pattern}")


class CheckpointStore(CheckpointReader):
    """Writes folders `step_000001234` with `state.safetensors` and `progress.json`, atomically.

    A folder has one writer at a time. What a killed one left half-written is removed by the next.
    While it writes, the disk holds one checkpoint more than are kept.
    Use it in a `with` statement, or call `close`: only then the last write's error is seen.

    Args:
        folder: Where the checkpoints lie; it is made if need be.
        keep_last: How many of the newest are kept, at least 1.
        keep_best: How many of those with the best scores are kept besides.
        best: "min" or "max": which score is the best. One that is not finite never is; of equal
            ones the earlier is.

    Raises:
        ValueError: if an argument is wrong, or another writer is at work in the folder.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        keep_last: int = 3,
        keep_best: int = 1,
        best: str = "min",
    ):
        super().__init__(folder, best)
        if keep_last < 1 or keep_best < 0:
            raise ValueError(
                f"keep_last={keep_last} must be at least 1, keep_best={keep_best} at least 0."
            )
        self._keep_last, self._keep_best = keep_last, keep_best
        self._scores: dict[pathlib.Path, float | None] = {}
        self._running: concurrent.futures.Future | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(self.folder)
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        try:
            self._remove_leftovers()
        except OSError:
            self.close()
            raise

    def save(
        self,
        step: int,
        arrays: Mapping[str, np.ndarray],
        progress: dict,
        score: float | None = None,
        block: bool = False,
    ) -> None:
        """Begin to write a checkpoint; if another is being written, wait for it first.

        To hold one copy of the state at most, call `wait` before you copy the arrays to the host.

        Args:
            step: Not below the newest one; the newest is replaced if it is saved again.
            arrays: Host arrays that stay unchanged until the write is done.
            progress: JSON-ready values, copied at once.
            score: What `best` ranks.
            block: Whether to return only when the checkpoint is on the disk.

        Raises:
            OSError: if an earlier checkpoint (then this one is not begun, and can be saved again)
                or, with `block`, this one could not be written.
            ValueError: if an argument is wrong, or the store is closed.
        """
        self._require_open()
        arrays, progress = checked_arrays(arrays), checked_progress(progress)
        score = None if score is None else float(score)
        self.wait()
        target = self._new_path(step)
        self._running = self._pool.submit(self._write, step, target, arrays, progress, score)
        if block:
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written.

        Raises:
            OSError: once, if a checkpoint could not be written; it says which.
        """
        if self._running is None:
            return
        # A ctrl-C while waiting must not lose sight of the write.
        concurrent.futures.wait([self._running])
        running, self._running = self._running, None
        running.result()

    def close(self) -> None:
        """Wait for the last write, and let others write in the folder.

        Raises:
            OSError: as `wait`.
        """
        try:
            self.wait()
        finally:
            self._pool.shutdown()
            self._lock.close()

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def discard_newer(self, step: int) -> list[int]:
        """Remove the checkpoints of later steps, so that a run can go on from this one.

        Args:
            step: The last to stay; -1 removes all.

        Returns:
            The steps removed.

        Raises:
            OSError: if one cannot be removed, or as `wait`.
            ValueError: if the store is closed.
        """
        self._require_open()
        self.wait()
        newer = [(found, path) for found, _, path in self._folders() if found > step]
        for _, path in reversed(newer):
            self._remove(path)
        return sorted({found for found, _ in newer})

    def _require_open(self):
        if self._lock.closed:
            raise ValueError(f"The store of {self.folder} is closed.")

    def _new_path(self, step):
        newest, revision, _ = max(self._folders(), default=(-1, 0, None))
        if not isinstance(step, numbers.Integral) or step < 0:
            raise ValueError(f"step must be an integer of at least 0, got {step!r}.")
        if step < newest:
            raise ValueError(
                f"Step {step} is below the newest in {self.folder}, step {newest}. If that is "
                "another run's, choose another folder; if this run went back, call "
                "discard_newer with the step from which it went on."
            )
        suffix = f".{revision + 1}" if step == newest else ""
        return self.folder / f"step_{step:09d}{suffix}"

    def _write(self, step, target, arrays, progress, score):
        """Write and prune, in the background."""
        try:
            write_checkpoint(target, arrays, progress, score)
        except Exception as error:
            raise OSError(
                f"Step {step} could not be saved in {self.folder}, older ones are untouched: "
                f"{error}"
            ) from error
        self._scores[target] = score
        try:
            self._prune()
        except OSError as error:
            raise OSError(f"Step {step} is saved, but an older one stays: {error}") from error

    def _prune(self):
        paths = self._paths()
        kept = sorted(paths)[-self._keep_last :] + self._ranked(paths)[: self._keep_best]
        kept = {paths[step] for step in kept}
        for _, _, path in self._folders():
            if path not in kept:
                self._remove(path)

    def _score(self, path):
        # Progress may be large, and nobody else changes these: each is read once.
        if path not in self._scores:
            self._scores[path] = super()._score(path)
        return self._scores[path]

    def _remove(self, path):
        """Take the folder away at once: half removed, it would look damaged."""
        hidden = path.with_name(REMOVING + path.name)
        os.rename(path, hidden)
        sync_folder(self.folder)
        shutil.rmtree(hidden)

    def _remove_leftovers(self):
        # While the lock is held nobody else writes here: those who wrote these are gone.
        for path in self.folder.iterdir():
            if _LEFTOVER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
