"""Which prompts are read together."""

from types import SimpleNamespace

import numpy as np
import pytest

from dl_techniques.generation.engine import CacheState
from dl_techniques.serving.reading_groups import MOST_POSITIONS, reading_groups


def begun(to_read, new_tokens=8, used=0, context=()):
    wanted = SimpleNamespace(max_new_tokens=new_tokens)
    keys_and_values = [np.zeros((1, used, 1, 1))] * 2
    cache = [(*keys_and_values, *(np.zeros((1, length)) for length in context))]
    earlier = CacheState(cache, np.ones((1, used), bool), used) if used else None
    return SimpleNamespace(to_read=to_read, wanted=wanted, earlier=earlier)


def lengths(requests, max_positions=10**6):
    groups = reading_groups(requests, max_positions)
    assert sorted(map(id, sum(groups, []))) == sorted(map(id, requests))
    return [[running.to_read for running in group] for group in groups]


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (7, [7]), (40, [16, 16, 8])])
def test_sizes(count, sizes):
    assert [len(group) for group in lengths([begun(5)] * count)] == sizes


def test_like_lengths_are_together():
    assert lengths([begun(n) for n in (60, 20, 47, 33, 64, 9)]) == [[64, 60, 47, 33], [20, 9]]


def test_who_goes_on_from_a_cache_is_read_with_others_who_do():
    going_on = [begun(n, used=30) for n in (2, 4, 6, 8)]
    assert lengths([begun(1), *going_on, begun(3)]) == [[3, 1], [8, 6, 4, 2]]


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (3, [1] * 3), (6, [4, 1, 1]), (24, [16, 4, 4])]
)
def test_few_numbers_go_on_together(count, sizes):
    assert [len(group) for group in lengths([begun(5, used=9)] * count)] == sizes


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
    requests = [begun(70, 90), begun(90, 10)]
    assert lengths(requests, max_positions=170) == [[90], [70]]
    assert lengths(requests, max_positions=180) == [[90, 70]]


def test_long_prompts_are_not_read_together():
    half = MOST_POSITIONS // 2
    assert lengths([begun(half), begun(half)]) == [[half, half]]
    assert lengths([begun(half), begun(half + 1)]) == [[half + 1], [half]]
    assert lengths([begun(2 * MOST_POSITIONS)]) == [[2 * MOST_POSITIONS]]
