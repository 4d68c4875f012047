"""Which prompts are read together."""

from collections.abc import Sequence

from dl_techniques.generation.buckets import bucket
from dl_techniques.generation.engine import TOKEN_BUCKET
from dl_techniques.serving.running import Running

# Prompts are read by so many, as rows of a batch are decoded: other numbers would be compiled too.
NUMBERS_OF_ROWS = (16, 4, 1)
MOST_TOGETHER = max(NUMBERS_OF_ROWS)
# Reading more at once is no faster, and those who are answered wait for it.
MOST_POSITIONS = 4096


def reading_groups(
    begun: Sequence[Running], max_positions: int, most_read: float = MOST_POSITIONS
) -> list[list[Running]]:
    """Return groups of requests, so that little of what is read is padding.

    Either all of a group go on from an earlier cache, or none. In a group all prompts take the
    room of the longest, behind the longest cache, and have room for the longest answer.

    Args:
        begun: Requests that have begun.
        max_positions: Those that the model has.
        most_read: How many positions a group of several may have.
    """
    groups: list[list[Running]] = []
    for running in sorted(begun, key=_place):
        group = [*groups[-1], running] if groups else []
        if group and _fits(group, max_positions, most_read):
            groups[-1] = group
        else:
            groups.append([running])
    return [part for group in groups for part in _parts(group)]


def _place(running):
    return _contexts(running), -_used(running), -running.to_read


def _contexts(running):
    """Return what caches must share to be joined: the lengths of what cross-attention reads."""
    if running.earlier is None:
        return (0,)
    return (1, *(x.shape[1] for block in running.earlier.cache for x in block[2:]))


def _used(running):
    return 0 if running.earlier is None else running.earlier.used


def _fits(group, max_positions, most_read):
    lengths = [bucket(running.to_read, TOKEN_BUCKET) for running in group]
    used = [_used(running) for running in group]
    answer = max(running.wanted.max_new_tokens for running in group)
    return (
        len({_contexts(running) for running in group}) == 1
        and len(group) <= MOST_TOGETHER
        and 2 * max(lengths) <= 3 * min(lengths)
        and 2 * max(used) <= 3 * bucket(min(used), TOKEN_BUCKET)
        and max(used) + max(running.to_read for running in group) + answer <= max_positions
        and len(group) * max(lengths) <= most_read
    )


def _parts(group):
    parts = []
    while group:
        number = next(number for number in NUMBERS_OF_ROWS if fills(len(group), number))
        parts.append(group[:number])
        group = group[number:]
    return parts


def fills(count: int, number: int) -> bool:
    """Return whether so many requests are read as a number of rows, some of them padding."""
    return 4 * count >= 3 * number


def rows_read(group: Sequence[Running]) -> int:
    """Return how many rows are read for a group; those behind its own are padding."""
    return min(number for number in NUMBERS_OF_ROWS if number >= len(group))


def positions_read(group: Sequence[Running]) -> int:
    """Return how many positions are read for a group, padding included."""
    longest = max(running.to_read for running in group)
    return rows_read(group) * bucket(longest, TOKEN_BUCKET)
