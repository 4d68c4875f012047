"""The record of samples that could not be used."""

from collections import Counter
from typing import NamedTuple


class BadSample(NamedTuple):
    """One unusable sample: its id, the kind of fault, and the full message."""

    sample_id: str
    reason: str
    message: str


class Quarantine:
    """Counts and names the samples that were left out, and why.

    Attributes:
        total: how many samples were looked at.
        items: the bad ones, in order.
    """

    def __init__(self):
        self.total = 0
        self.items: list[BadSample] = []

    @property
    def counts(self) -> dict[str, int]:
        """Bad samples per reason, the most frequent first."""
        return dict(Counter(item.reason for item in self.items).most_common())

    def add(self, sample_id: str, reason: str, message: str):
        """Notes one bad sample."""
        self.items.append(BadSample(sample_id, reason, message))

    def check(self, max_share: float, shown: int = 5):
        """Refuses to go on when too many samples are bad.

        Args:
            max_share: the largest tolerated share of `total`.
            shown: how many of the bad samples the message lists.

        Raises:
            ValueError: the share is larger.
        """
        if len(self.items) <= max_share * self.total:
            return
        first = "\n".join(f"  {i.sample_id}: {i.message}" for i in self.items[:shown])
        raise ValueError(
            f"{self}, more than max_bad_share={max_share:g} of them. Mend the data or raise "
            f"max_bad_share. The first ones:\n{first}"
        )

    def __len__(self) -> int:
        return len(self.items)

    def __str__(self) -> str:
        if not self.items:
            return f"0 of {self.total} samples are bad"
        reasons = ", ".join(f"{reason}: {count}" for reason, count in self.counts.items())
        return f"{len(self.items)} of {self.total} samples are bad ({reasons})"
