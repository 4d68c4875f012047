"""A lock on a folder that ends with its process, however that ends."""

import fcntl
import os
import pathlib
import socket
import weakref
from typing import TextIO

LOCK_FILE = ".lock"
_held: weakref.WeakSet[TextIO] = weakref.WeakSet()


def _close_inherited():
    for file in list(_held):
        file.close()


# A forked child shares its parent's locks; a worker that outlives a killed run would keep them.
os.register_at_fork(after_in_child=_close_inherited)


def lock_folder(folder: pathlib.Path) -> TextIO:
    """Lock the folder until the returned file is closed or the process is gone.

    Raises:
        ValueError: if a process, this one or another, holds the lock.
    """
    file = open(folder / LOCK_FILE, "a+")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise ValueError(
            f"{folder} is in use: {holder} writes checkpoints there. Stop it, close its store, "
            "or choose another folder. CheckpointReader reads this one meanwhile."
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    _held.add(file)
    return file
