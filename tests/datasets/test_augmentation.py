import numpy as np
import pytest

from dl_techniques.datasets.augmentation import (
    colour_jitter,
    compose,
    random_crop,
    random_flip,
    random_resized_crop,
)

IMAGE = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
ALL = [
    random_flip(),
    random_crop(3),
    random_resized_crop(),
    colour_jitter(),
    compose(random_crop(2), random_flip(), colour_jitter(0.3, 0.3, 0.3)),
]


@pytest.mark.parametrize("augment", ALL)
def test_format_determinism_and_untouched_input(augment):
    before = IMAGE.copy()
    results = [augment(IMAGE, np.random.default_rng(seed)) for seed in range(8)]
    again = [augment(IMAGE, np.random.default_rng(seed)) for seed in range(8)]
    assert np.array_equal(IMAGE, before)
    for result, same in zip(results, again, strict=True):
        assert result.shape == IMAGE.shape and result.dtype == np.uint8
        assert np.array_equal(result, same)
    assert len({result.tobytes() for result in results}) > 1


def test_flip():
    rng = np.random.default_rng(0)
    assert np.array_equal(random_flip(1.0)(IMAGE, rng), IMAGE[:, ::-1])
    assert np.array_equal(random_flip(0.0)(IMAGE, rng), IMAGE)


def test_crop_shifts_and_repeats_the_edge():
    assert np.array_equal(random_crop(0)(IMAGE, np.random.default_rng(0)), IMAGE)
    shifts = set()
    for seed in range(60):
        result = random_crop(1)(IMAGE, np.random.default_rng(seed))
        found = [
            (dy, dx)
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            if np.array_equal(result[1:-1, 1:-1], np.roll(IMAGE, (-dy, -dx), (0, 1))[1:-1, 1:-1])
        ]
        assert len(found) == 1
        if found[0] == (1, 0):
            assert np.array_equal(result[-1], IMAGE[-1])
        shifts.add(found[0])
    assert len(shifts) == 9


def test_resized_crop_of_everything_changes_nothing():
    whole = random_resized_crop((1.0, 1.0), (1.0, 1.0))
    assert np.array_equal(whole(IMAGE, np.random.default_rng(0)), IMAGE)
    ramp = np.repeat(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], 12, 0).repeat(3, 2)
    half = random_resized_crop((0.25, 0.25), (1.0, 1.0))(ramp, np.random.default_rng(0))
    spread = int(half.max()) - int(half.min())
    assert 50 < spread < 90  # Half of the ramp's 150.


def test_colour_jitter_by_hand():
    rng = np.random.default_rng(0)
    assert np.array_equal(colour_jitter(0.0, 0.0, 0.0)(IMAGE, rng), IMAGE)
    light = np.random.default_rng(5).uniform(0.5, 1.5)
    grey = np.full((2, 2, 3), 100, np.uint8)
    brighter = colour_jitter(0.5, 0.0, 0.0)(grey, np.random.default_rng(5))
    assert (brighter == round(100 * light)).all()
    assert (colour_jitter(0.0, 1.0, 1.0)(grey, rng) == 100).all()


def test_bad_arguments():
    for make in (
        lambda: random_flip(1.5),
        lambda: random_crop(-1),
        lambda: random_resized_crop((0.9, 0.5)),
        lambda: random_resized_crop((0.5, 1.5)),
        lambda: colour_jitter(-0.1),
    ):
        with pytest.raises(ValueError, match="must lie in"):
            make()
