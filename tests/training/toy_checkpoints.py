"""Tiny checkpoints, all of whose content tells their step."""

import numpy as np


def state(step, size=6):
    """Return (arrays, progress)."""
    arrays = {"w": np.full((2, size // 2), step, "float32"), "n": np.array(step)}
    return arrays, {"step": step}


def is_of(step, arrays, progress):
    """Return whether all that was loaded is of this step."""
    return (
        progress == {"step": step}
        and set(arrays) == {"w", "n"}
        and np.all(arrays["w"] == step)
        and int(arrays["n"]) == step
    )


def save(store, step, score=None):
    """Save and wait."""
    store.save(step, *state(step), score=score, block=True)


def names(folder):
    """Return the names in the folder, but for the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def contents(folder):
    """Return path -> bytes of every file in and below the folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
