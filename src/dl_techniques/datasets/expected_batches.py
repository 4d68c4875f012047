"""About how many batches a stream has, known from some samples of each source."""

import math

from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.planning import Planner
from dl_techniques.datasets.stream import TrainingStream


def expected_batches(stream: TrainingStream, samples: int = 500) -> int | None:
    """Return about how many batches a stream will have; None if its end cannot be known.

    Each source's first samples are planned into rows of their own, without a look at pixels. The
    number is exact where all samples together are no more than those of one source may be.

    Args:
        stream: Not changed, and nothing is put into its quarantine.
        samples: How many of each source are planned at most.

    Raises:
        ValueError: as the stream, for sources from which nothing can be learned.
    """
    if not stream.ends:
        return None
    whole = stream.planner(stream.sources, stream.mixture)
    limits = whole.limits()
    if any(map(math.isinf, limits.values())):  # A source that is read over the network.
        return None
    if sum(limits.values()) <= samples:
        rows = _rows(whole)
    else:
        rows = sum(_rows_of_source(stream, name, n, samples) for name, n in limits.items() if n)
    return math.ceil(rows / (stream.settings.batch_size * stream.settings.process_count))


def _rows_of_source(stream: TrainingStream, name: str, limit: int, samples: int) -> float:
    """Return about how many rows the samples of a source fill."""
    source, planned = stream.sources[name], min(limit, samples)
    alone = Mixture({name: 1.0}, epochs=planned / len(source), seed=stream.mixture.seed)
    return _rows(stream.planner({name: source}, alone)) * limit / planned


def _rows(planner: Planner) -> int:
    return sum(1 for _ in iter(planner.next_row, None))
