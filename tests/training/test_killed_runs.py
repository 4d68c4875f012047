"""A whole run that is killed at random moments ends as the one that was not."""

import keras
from killed_runs import kill_again_and_again, largest_difference, run

# Both kills come within 1 s of training, and a step takes at least 0.02 s: of 64, some are left.
STEPS = 32


def test_a_killed_run_ends_as_the_whole_one(tmp_path):
    run(tmp_path / "whole", STEPS)
    kill_again_and_again(tmp_path / "killed", STEPS, kills=2, longest=0.5)
    limit = 0.0 if keras.backend.backend() == "jax" else 1e-6
    assert max(largest_difference(tmp_path / "whole", tmp_path / "killed")) <= limit
