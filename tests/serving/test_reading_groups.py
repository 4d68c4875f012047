"""Which prompts are read together."""

from types import SimpleNamespace

import pytest

from dl_techniques.serving.reading_groups import MOST_POSITIONS, reading_groups


def begun(positions, new_tokens=8, earlier=None):
    wanted = SimpleNamespace(max_new_tokens=new_tokens)
    return SimpleNamespace(positions=positions, wanted=wanted, earlier=earlier)


def lengths(requests, max_positions=10**6):
    groups = reading_groups(requests, max_positions)
    assert sorted(map(id, sum(groups, []))) == sorted(map(id, requests))
    return [[running.positions for running in group] for group in groups]


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (7, [7]), (40, [16, 16, 8])])
def test_sizes(count, sizes):
    assert [len(group) for group in lengths([begun(5)] * count)] == sizes


def test_like_lengths_are_together():
    assert lengths([begun(n) for n in (60, 20, 47, 33, 64, 9)]) == [[64, 60, 47, 33], [20, 9]]


def test_who_goes_on_from_a_cache_is_alone():
    assert lengths([begun(1), begun(2, earlier="cache"), begun(3)]) == [[2], [3, 1]]


def test_all_have_room_for_the_longest_answer():
    requests = [begun(70, 90), begun(90, 10)]
    assert lengths(requests, max_positions=170) == [[90], [70]]
    assert lengths(requests, max_positions=180) == [[90, 70]]


def test_long_prompts_are_not_read_together():
    half = MOST_POSITIONS // 2
    assert lengths([begun(half), begun(half)]) == [[half, half]]
    assert lengths([begun(half), begun(half + 1)]) == [[half + 1], [half]]
    assert lengths([begun(2 * MOST_POSITIONS)]) == [[2 * MOST_POSITIONS]]
