"""The record of samples that could not be used."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dl_techniques.utils.appended_file import AppendedFile

# How many bad samples a record with a file keeps in memory beside it.
_KEPT = 100


@dataclass(frozen=True)
class BadSample:
    """One unusable sample.

    Attributes:
        sample_id: its id, as far as it has one.
        reason: the kind of fault.
        message: what is wrong, in full.
        source: the name of its source.
        row: its number in the source, from 0.
        place: where that row is: a file and a line, for example.
    """

    sample_id: str
    reason: str
    message: str
    source: str = ""
    row: int | None = None
    place: str = ""


class Quarantine:
    """Counts and names the samples that were left out, and why.

    Args:
        path: a JSONL file with one line per bad sample: the fields of `BadSample`. An older file
            is replaced when the first samples are recorded, unless `restore` goes on with it.
            Default: everything is kept in memory.

    Attributes:
        total: how many samples were looked at.
        items: the bad ones, in order; with a file the first hundred.
        by_source: bad samples per (source, reason).
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self.total = 0
        self.items: list[BadSample] = []
        self.by_source: Counter[tuple[str, str]] = Counter()
        self._file = None if path is None else AppendedFile(path)

    @property
    def counts(self) -> dict[str, int]:
        """Bad samples per reason, the most frequent first."""
        counts: Counter[str] = Counter()
        for (_, reason), count in self.by_source.items():
            counts[reason] += count
        return dict(counts.most_common())

    def add(self, sample_id: str, reason: str, message: str):
        """Notes one bad sample."""
        self.record([BadSample(sample_id, reason, message)])

    def record(self, items: Iterable[BadSample]):
        """Notes bad samples.

        Raises:
            OSError: the file cannot be written.
        """
        items = list(items)
        self.by_source.update((item.source, item.reason) for item in items)
        kept = len(items) if self._file is None else max(0, _KEPT - len(self.items))
        self.items += items[:kept]
        if self._file is not None:
            lines = [json.dumps(dataclasses.asdict(i), ensure_ascii=False) + "\n" for i in items]
            self._file.append("".join(lines))

    def check(self, max_share: float, shown: int = 5):
        """Refuses to go on when too many samples are bad.

        Args:
            max_share: the largest tolerated share of `total`.
            shown: how many of the bad samples the message lists.

        Raises:
            ValueError: the share is larger.
        """
        if len(self) <= max_share * self.total:
            return
        first = "\n".join(f"  {i.sample_id}: {i.message}" for i in self.items[:shown])
        raise ValueError(
            f"{self}, more than max_bad_share={max_share:g} of them. Mend the data or raise "
            f"max_bad_share. The first ones:\n{first}"
        )

    def state(self) -> dict[str, Any]:
        """Returns what `restore` needs, JSON-ready: the counts, and how long the file is."""
        counts = [[source, reason, count] for (source, reason), count in self.by_source.items()]
        items = [dataclasses.asdict(item) for item in self.items]
        size = 0 if self._file is None else self._file.size
        return {"total": self.total, "counts": counts, "items": items, "bytes": size}

    def restore(self, state: Mapping[str, Any]):
        """Goes on where the state was taken; what the file has beyond it is cut off."""
        self.total = state["total"]
        self.items = [BadSample(**item) for item in state["items"]]
        self.by_source = Counter(
            {(source, reason): count for source, reason, count in state["counts"]}
        )
        if self._file is not None:
            self._file.restore(state["bytes"])

    def __len__(self) -> int:
        return self.by_source.total()

    def __str__(self) -> str:
        if not len(self):
            return f"0 of {self.total} samples are bad"
        reasons = ", ".join(f"{reason}: {count}" for reason, count in self.counts.items())
        return f"{len(self)} of {self.total} samples are bad ({reasons})"
