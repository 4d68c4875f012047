"""Whenever a writer is killed, a run can go on from what it had saved."""

import json
import pathlib
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def killed():
    """What writers left that were killed, see `killed_writers`."""
    script = pathlib.Path(__file__).with_name("killed_writers.py")
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def assert_can_go_on(death):
    assert death["all_whole"]
    assert death["loaded"] == (death["steps"] or [None])[-1]
    assert death["promised"] is None or death["loaded"] >= death["promised"]


def test_killed_at_random_moments(killed):
    deaths = killed["random"]
    assert len(deaths) == 40
    for death in deaths:
        assert_can_go_on(death)
    assert sum(death["half_written"] for death in deaths) >= 10


def test_killed_before_every_operation(killed):
    deaths = killed["every operation"]
    for death in deaths:
        assert_can_go_on(death)
        assert death["steps_after_cleaning"] == death["steps"]
        assert set(death["cleaned"]) <= {".lock", *map("step_00000000{}".format, range(4))} | {
            "step_000000002.1"
        }
    assert any(death["half_written"] for death in deaths)
    assert any(death["half_removed"] for death in deaths)
    assert any("step_000000002.1" in death["cleaned"] for death in deaths)
    assert {tuple(death["steps"]) for death in deaths} == {(), (1,), (1, 2), (1, 2, 3), (1, 3)}


def test_a_child_that_outlives_a_killed_writer_does_not_hold_its_lock(killed):
    assert killed["survived"] == ["opened"]
