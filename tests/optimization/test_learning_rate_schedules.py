import math

import keras
import pytest

from dl_techniques.optimization import learning_rate_schedule_builder

GUIDE = {
    "type": "cosine_decay",
    "warmup_steps": 1000,
    "warmup_start_lr": 1e-8,
    "learning_rate": 1e-4,
    "decay_steps": 50000,
    "alpha": 1e-4,
}


def rates(config, steps):
    schedule = learning_rate_schedule_builder(config)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert [float(again(s)) for s in steps] == [float(schedule(s)) for s in steps]
    return [float(schedule(s)) for s in steps]


def test_cosine_decay_of_the_guide():
    got = rates(GUIDE, [0, 500, 1000, 26000, 51000, 90000])
    middle = 1e-4 * ((1 - 1e-4) * 0.5 + 1e-4)
    expected = [1e-8, (1e-8 + 1e-4) / 2, 1e-4, middle, 1e-8, 1e-8]
    assert got == pytest.approx(expected, rel=1e-3)


def test_cosine_decay_without_warm_up():
    config = {"type": "cosine_decay", "learning_rate": 0.2, "decay_steps": 10, "alpha": 0.1}
    quarter = 0.2 * (0.9 * 0.5 * (1 + math.cos(math.pi / 4)) + 0.1)
    got = rates(config, [0, 2.5, 10, 11])
    assert got == pytest.approx([0.2, quarter, 0.02, 0.02], rel=1e-5)


def test_linear_decay():
    config = {**GUIDE, "type": "linear_decay", "learning_rate": 1.0, "alpha": 0.5}
    config |= {"warmup_steps": 4, "warmup_start_lr": 0.2, "decay_steps": 10}
    got = rates(config, [0, 1, 4, 9, 14, 100])
    assert got == pytest.approx([0.2, 0.4, 1.0, 0.75, 0.5, 0.5], rel=1e-6)


def test_constant():
    config = {"type": "constant", "learning_rate": 0.5}
    assert rates(config, [0, 7]) == [0.5, 0.5]
    config |= {"warmup_steps": 2, "warmup_start_lr": 0.1}
    assert rates(config, [0, 1, 2, 10**6]) == pytest.approx([0.1, 0.3, 0.5, 0.5], rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "cosine"}, r"'cosine'.*\['constant', 'cosine_decay', 'linear_decay'\]"),
        ({"warm_up": 3}, r"Unknown keys \['warm_up'\].*'warmup_steps'"),
        ({"type": "constant"}, r"Unknown keys \['alpha', 'decay_steps'\]"),
        ({"learning_rate": 0.0}, "'learning_rate' must be > 0"),
        ({"learning_rate": "1e-4"}, "'learning_rate' must be a number"),
        ({"decay_steps": 0}, "'decay_steps' must be >= 1"),
        ({"decay_steps": 1.5}, "'decay_steps' must be a whole number"),
        ({"decay_steps": None}, "'decay_steps' must be a whole number"),
        ({"warmup_steps": -1}, "'warmup_steps' must be >= 0"),
    ],
)
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        learning_rate_schedule_builder({**GUIDE, **change})


def test_config_is_not_changed_and_missing_key_is_named():
    config = dict(GUIDE)
    learning_rate_schedule_builder(config)
    assert config == GUIDE
    del config["decay_steps"]
    with pytest.raises(ValueError, match="'decay_steps'"):
        learning_rate_schedule_builder(config)
