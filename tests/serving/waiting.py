"""What tests of the engine's thread wait for."""

import time

ROWS = 3


def wait_until(condition, seconds=60):
    """Wait until a condition is true."""
    for _ in range(int(100 * seconds)):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("It did not happen.")


def idle(engine):
    """Wait until nothing is on its way."""
    wait_until(lambda: not engine.stats()["running"] and not engine.stats()["waiting"])
