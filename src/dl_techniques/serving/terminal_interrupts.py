"""Interrupts: what ctrl-C stops."""

import signal


class Interrupts:
    """While it is entered ctrl-C raises KeyboardInterrupt, but once for each line that is typed.

    So nothing breaks off what is done after it, such as keeping the half of an answer.
    """

    def __init__(self):
        self._came = self._held = False

    def __enter__(self):
        self._before = signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(self, *error):
        signal.signal(signal.SIGINT, self._before)

    def begin_line(self) -> None:
        """From now on the next ctrl-C counts."""
        self._came = self._held = False

    def hold(self) -> None:
        """Let ctrl-C wait for `release`, as where a lock would stay taken."""
        self._held = True

    def release(self) -> None:
        """Raise KeyboardInterrupt now if ctrl-C came since `hold`."""
        self._held = False
        if self._came:
            raise KeyboardInterrupt

    def _take(self, number, frame):
        if not self._came:
            self._came = True
            if not self._held:
                raise KeyboardInterrupt
