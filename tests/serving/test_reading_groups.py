"""Which prompts are read together."""

from types import SimpleNamespace

import numpy as np
import pytest

from dl_techniques.generation.engine import CacheState
from dl_techniques.serving.reading_groups import (
    MOST_POSITIONS,
    positions_read,
    reading_groups,
    rows_read,
)


def begun(to_read, new_tokens=8, used=0, context=()):
    wanted = SimpleNamespace(max_new_tokens=new_tokens)
    keys_and_values = [np.zeros((1, used, 1, 1))] * 2
    cache = [(*keys_and_values, *(np.zeros((1, length)) for length in context))]
    earlier = CacheState(cache, np.ones((1, used), bool), used) if used else None
    return SimpleNamespace(to_read=to_read, wanted=wanted, earlier=earlier)


def lengths(requests, max_positions=10**6, **limits):
    groups = reading_groups(requests, max_positions, **limits)
    assert sorted(map(id, sum(groups, []))) == sorted(map(id, requests))
    return [[running.to_read for running in group] for group in groups]


@pytest.mark.parametrize("used", [0, 9])
@pytest.mark.parametrize(
    ("count", "sizes", "rows"),
    [
        (0, [], []),
        (1, [1], [1]),
        (2, [1, 1], [1, 1]),
        (3, [3], [4]),
        (7, [4, 3], [4, 4]),
        (11, [4, 4, 3], [4, 4, 4]),
        (13, [13], [16]),
        (40, [16, 16, 4, 4], [16, 16, 4, 4]),
    ],
)
def test_few_numbers_of_rows(count, sizes, rows, used):
    groups = reading_groups([begun(5, used=used)] * count, 10**6)
    assert [len(group) for group in groups] == sizes
    assert [rows_read(group) for group in groups] == rows


def test_like_lengths_are_together():
    requests = [begun(n) for n in (60, 20, 47, 33, 64, 9, 11)]
    assert lengths(requests) == [[64, 60, 47, 33], [20, 11, 9]]


def test_who_goes_on_from_a_cache_is_read_with_others_who_do():
    going_on = [begun(n, used=30) for n in (2, 4, 6, 8)]
    assert lengths([begun(1), *going_on, begun(3), begun(2)]) == [[3, 2, 1], [8, 6, 4, 2]]


def test_like_caches_go_on_together():
    small, large = ([begun(5, used=used) for _ in range(4)] for used in (64, 97))
    assert [len(group) for group in lengths(small + large)] == [4, 4]
    assert [len(group) for group in lengths(small[:2] + large[:2])] == [1] * 4
    assert [len(group) for group in lengths([begun(5, used=n) for n in (64, 70, 80, 96)])] == [4]


def test_caches_of_other_contexts_are_not_joined():
    one, other = ([begun(5, used=64, context=context) for _ in range(2)] for context in ([3], [4]))
    assert [len(group) for group in lengths(one + other)] == [1] * 4
    assert [len(group) for group in lengths(one + one)] == [4]


def test_all_have_room_behind_the_longest_cache():
    requests = [begun(5, used=used) for used in (60, 70, 70, 70)]
    assert [len(group) for group in lengths(requests, max_positions=83)] == [4]
    assert [len(group) for group in lengths(requests, max_positions=82)] == [1] * 4


def test_all_have_room_for_the_longest_answer():
    requests = [begun(70, 90), begun(80, 10), begun(90, 10)]
    assert lengths(requests, max_positions=170) == [[90], [80], [70]]
    assert lengths(requests, max_positions=180) == [[90, 80, 70]]


def test_long_prompts_are_not_read_together():
    part = MOST_POSITIONS // 4
    assert lengths([begun(part)] * 4) == [[part] * 4]
    assert lengths([begun(part + 1), *[begun(part)] * 2]) == [[part + 1], [part], [part]]
    assert lengths([begun(2 * MOST_POSITIONS)]) == [[2 * MOST_POSITIONS]]


def test_few_positions_at_a_time():
    requests = [begun(20)] * 4  # In buckets of 24 positions.
    assert lengths(requests, most_read=96) == [[20] * 4]
    assert lengths(requests, most_read=95) == [[20] * 3, [20]]
    assert lengths(requests, most_read=0.5) == [[20]] * 4


def test_positions_are_counted_with_padding():
    assert positions_read([begun(17)]) == 24
    assert positions_read([begun(17), begun(9), begun(16)]) == 4 * 24
