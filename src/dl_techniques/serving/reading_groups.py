"""Which prompts are read together."""

from collections.abc import Sequence

from dl_techniques.generation.buckets import bucket
from dl_techniques.generation.engine import TOKEN_BUCKET
from dl_techniques.serving.running import Running

MOST_TOGETHER = 16
# Reading more at once is no faster, and those who are answered wait for it.
MOST_POSITIONS = 4096


def reading_groups(begun: Sequence[Running], max_positions: int) -> list[list[Running]]:
    """Return groups of requests, so that little of what is read is padding.

    Who goes on from an earlier cache is alone. In a group all prompts take the room of the longest,
    and have room for the longest answer.

    Args:
        begun: Requests that have begun.
        max_positions: Those that the model has.
    """
    groups = [[running] for running in begun if running.earlier is not None]
    waiting = [running for running in begun if running.earlier is None]
    group: list[Running] = []
    for running in sorted(waiting, key=lambda running: -running.positions):
        if not group or not _fits([*group, running], max_positions):
            group = []
            groups.append(group)
        group.append(running)
    return groups


def _fits(group, max_positions):
    longest, *_, shortest = (bucket(running.positions, TOKEN_BUCKET) for running in group)
    answer = max(running.wanted.max_new_tokens for running in group)
    return (
        len(group) <= MOST_TOGETHER
        and 2 * longest <= 3 * shortest
        and group[0].positions + answer <= max_positions
        and len(group) * longest <= MOST_POSITIONS
    )
