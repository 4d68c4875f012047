"""Stopping a run between two steps: ctrl-C, and SIGTERM as schedulers of clusters send it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turn the first ctrl-C or SIGTERM into a set event, so that no step is cut in two.

    The second one does what it did before: ctrl-C raises KeyboardInterrupt, SIGTERM ends the
    process. In other threads than the main one signals are left alone, and the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}

    def restore():
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(signum, frame):
        stop.set()
        restore()

    for number in SIGNALS:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
