"""Which prompts are read together."""

from collections.abc import Sequence

from dl_techniques.serving.running import Running

MOST_TOGETHER = 8
# Reading more at once is no faster, and those who are answered wait for it.
MOST_POSITIONS = 4096


def reading_groups(begun: Sequence[Running], max_positions: int) -> list[list[Running]]:
    """Return groups of 1, 2, 4 or 8 requests, so that few shapes are compiled.

    Who goes on from an earlier cache is alone. In a group all prompts take the room of the longest,
    and have room for the longest answer.

    Args:
        begun: Requests that have begun.
        max_positions: Those that the model has.
    """
    groups = [[running] for running in begun if running.earlier is not None]
    # Prompts of like lengths side by side.
    waiting = sorted(
        (running for running in begun if running.earlier is None), key=lambda r: r.positions
    )
    while waiting:
        count = MOST_TOGETHER
        while count > len(waiting) or not _fits(waiting[:count], max_positions):
            count //= 2
        groups.append(waiting[:count])
        waiting = waiting[count:]
    return groups


def _fits(group, max_positions):
    longest = max(running.positions for running in group)
    answer = max(running.wanted.max_new_tokens for running in group)
    together = longest + answer <= max_positions and len(group) * longest <= MOST_POSITIONS
    return len(group) == 1 or together
