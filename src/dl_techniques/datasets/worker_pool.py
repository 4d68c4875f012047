"""Workers: threads or processes that prepare images."""

import multiprocessing
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor


def worker_pool(workers: int, kind: str) -> Executor | None:
    """Returns a pool of threads or processes ("thread", "process"), or None for no workers."""
    if not workers:
        return None
    if kind == "thread":  # Pillow decodes outside Python's lock.
        return ThreadPoolExecutor(workers)
    # A forked child of a process that runs a backend's threads may hang.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context)
