"""Losses and metrics of next-token training."""

from dl_techniques.losses.metrics import (
    EmptyBatches,
    NamedMeans,
    NextTokenAccuracy,
    SupervisedTokens,
)
from dl_techniques.losses.nanovlm_loss import NanoVLMLoss, supervised_token_count

__all__ = [
    "EmptyBatches",
    "NamedMeans",
    "NanoVLMLoss",
    "NextTokenAccuracy",
    "SupervisedTokens",
    "supervised_token_count",
]
