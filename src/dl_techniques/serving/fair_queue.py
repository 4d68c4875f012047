"""FairQueue: waiting requests of several clients, who take turns."""

from collections import Counter, OrderedDict, deque

from dl_techniques.serving.requests import FullError
from dl_techniques.serving.running import Running


class FairQueue:
    """Waiting requests; the next is one of the client of whom the fewest run.

    Of clients of whom as many run, the one comes first whose last turn is longest ago. Not safe
    for threads.

    Args:
        most: How many may wait.
        most_per_client: How many of one client may wait or run.
    """

    def __init__(self, most: int, most_per_client: int):
        if most < 1 or most_per_client < 1:
            raise ValueError(f"most={most} and most_per_client={most_per_client} must be >= 1.")
        self._most, self._most_per_client = most, most_per_client
        self._waiting: OrderedDict[str, deque[Running]] = OrderedDict()
        self._running: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, running: Running, retry_after: int = 1) -> None:
        """Let a request wait.

        Raises:
            FullError: if too many wait, or too many of this client wait or run.
        """
        client = running.request.client
        own = len(self._waiting.get(client, ())) + self._running[client]
        if own >= self._most_per_client:
            raise FullError(
                f"{own} requests of this client are open, the most that may be: wait for one.",
                retry_after,
            )
        if len(self) >= self._most:
            raise FullError(
                f"{len(self)} requests are waiting, the most that may: try later.", retry_after
            )
        self._waiting.setdefault(client, deque()).append(running)

    def pop(self) -> Running:
        """Return the next request, which runs from now on; there must be one."""
        client = min(self._waiting, key=lambda name: self._running[name])
        waiting = self._waiting.pop(client)
        running = waiting.popleft()
        if waiting:
            self._waiting[client] = waiting  # Behind all others.
        self._running[client] += 1
        return running

    def finish(self, running: Running) -> None:
        """Count a request that ran as done."""
        client = running.request.client
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]

    def remove_if(self, condition) -> list[Running]:
        """Return the waiting requests of which the condition is true; they wait no longer."""
        removed = [r for waiting in self._waiting.values() for r in waiting if condition(r)]
        for running in removed:
            waiting = self._waiting[running.request.client]
            waiting.remove(running)
            if not waiting:
                del self._waiting[running.request.client]
        return removed
