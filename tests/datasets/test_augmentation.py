import pickle

import numpy as np
import pytest

from dl_techniques.datasets import generate_shapes, read_samples
from dl_techniques.datasets.augmentation import (
    colour_jitter,
    compose,
    may_flip,
    random_crop,
    random_flip,
    random_resized_crop,
    without_flip,
)
from dl_techniques.preprocessing.images import load_image

pytestmark = pytest.mark.no_backend

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
    sent = pickle.loads(pickle.dumps(augment))  # As to a worker process.
    again = [sent(IMAGE, np.random.default_rng(seed)) for seed in range(8)]
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


def test_resized_crop_keeps_the_drawn_share_of_the_area():
    # Rows and columns are numbered, so that the first and last ones of the part can be read off.
    rows, columns = np.arange(200, dtype=np.uint8)[:, None], np.arange(240, dtype=np.uint8)[None]
    numbered = np.stack(np.broadcast_arrays(rows, columns, rows), -1).astype(np.uint8)
    areas, places = [], set()
    for ratio in ((0.9, 1.1), (0.5, 2.0)):
        crop = random_resized_crop((0.5, 0.8), ratio)
        for seed in range(40):
            result = crop(numbered, np.random.default_rng(seed)).astype(int)
            assert result.shape == numbered.shape
            height = (result[-1, 0, 0] - result[0, 0, 0] + 1) / 200
            width = (result[0, -1, 1] - result[0, 0, 1] + 1) / 240
            assert 0.48 < height * width < 0.82
            assert ratio[0] - 0.03 < width / height < ratio[1] + 0.06
            areas.append(height * width)
            places.add((result[0, 0, 0], result[0, 0, 1]))
    assert min(areas) < 0.55 and max(areas) > 0.75 and len(places) > 60
    # A part that is too wide for the picture keeps its area, and loses some of its width.
    wide = random_resized_crop((0.8, 0.8), (2.0, 2.0))(numbered, np.random.default_rng(0))
    assert int(wide[-1, 0, 0]) - int(wide[0, 0, 0]) + 1 == pytest.approx(160, abs=2)


def test_resized_crop_of_one_colour_changes_nothing():
    plain = np.full((31, 17, 3), (7, 128, 250), np.uint8)
    for seed in range(20):
        assert np.array_equal(random_resized_crop()(plain, np.random.default_rng(seed)), plain)


def test_colour_jitter_by_hand():
    rng = np.random.default_rng(0)
    assert np.array_equal(colour_jitter(0.0, 0.0, 0.0)(IMAGE, rng), IMAGE)
    light = np.random.default_rng(5).uniform(0.5, 1.5)
    grey = np.full((2, 2, 3), 100, np.uint8)
    brighter = colour_jitter(0.5, 0.0, 0.0)(grey, np.random.default_rng(5))
    assert (brighter == round(100 * light)).all()
    assert (colour_jitter(0.0, 1.0, 1.0)(grey, rng) == 100).all()


def grey(image):
    return (image.astype(np.float64) @ [0.299, 0.587, 0.114]).mean()


def check_brightness(images, seeds=60):
    """The mean grey follows the brightness alone, and does not drift."""
    for image in images:
        jitter = colour_jitter(0.1, 0.1, 0.1)
        results = [jitter(image, np.random.default_rng(seed)) for seed in range(seeds)]
        factors = np.array([grey(result) / grey(image) for result in results])
        assert factors.min() > 0.89 and factors.max() < 1.11
        drawn = [np.random.default_rng(seed).uniform(0.9, 1.1) for seed in range(seeds)]
        assert np.abs(factors - drawn).max() < 0.02
        steady = [colour_jitter(0.0, 0.1, 0.1)(image, np.random.default_rng(s)) for s in range(20)]
        assert max(abs(grey(result) / grey(image) - 1) for result in steady) < 0.01


def test_contrast_and_saturation_keep_the_brightness():
    rng = np.random.default_rng(0)
    check_brightness([rng.integers((20, 40, 130), (70, 180, 220), (24, 24, 3), np.uint8)])


@pytest.mark.data
def test_brightness_of_photos(data_folder):
    samples = read_samples(data_folder / "flickr8k")[:6]
    check_brightness([np.asarray(load_image(sample["images"][0])) for sample in samples], 20)


def conversation(question, answer="yes"):
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]


@pytest.mark.parametrize(
    "text",
    [
        "What colour is the car?",
        "How many people are there?",
        "What is the number of dogs in the picture?",
        "Is the bright lamp upright?",
        "Has the copyrighted photo been taken outdoors?",
        "Answer the question using a single word or phrase.",
        "Answer with the option's letter from the given choices directly.",
        "Describe the picture in your own words.",
        "Two dogs, 3 cats and 12 birds.",
        "Is this a breadstick on the carpet next to the feast?",
    ],
)
def test_may_flip(text):
    assert may_flip(conversation(text)) and may_flip(conversation("What?", text))


@pytest.mark.parametrize(
    "text",
    [
        "What is left of the lamp?",
        "Is the cup on the RIGHT-hand side?",
        "The leftmost cat",
        "It turns counterclockwise.",
        "The wind blows from the northwest.",
        "Read the text.",
        "Which word is this?",
        "What letters are on the wall?",
        "What number is on the shirt?",
        "Which digits do you see?",
        "What does the sign say?",
        "What is written on the bus?",
        "Which brand is the laptop?",
        "What time does the clock show?",
        "What is the date on the receipt?",
        "In 2019",
        "3.73",
        "It costs $5.",
        "45 %",
        "03/09",
        "The cat is at [0.12, 0.30].",
    ],
)
def test_may_not_flip(text):
    assert not may_flip(conversation(text)) and not may_flip(conversation("What?", text))


def test_every_turn_and_every_form_of_content_is_looked_at():
    harmless = conversation("What colour is it?", "red")
    assert not may_flip(harmless + conversation("And left of it?", "blue"))
    parts = [{"type": "image", "image": "left.png"}, {"type": "text", "text": "What is it?"}]
    assert may_flip([{"role": "user", "content": parts}])
    parts[1]["text"] = "What is to its left?"
    assert not may_flip([{"role": "user", "content": parts}])
    assert may_flip([])
    with pytest.raises(ValueError, match="message 0 holds"):
        may_flip([{"role": "user", "content": ["left"]}])


def test_flips_of_generated_pictures():
    kinds = set()
    for sample in generate_shapes("train", 60):
        words = " ".join(message["content"] for message in sample["messages"])
        about_sides = " left " in words or " right " in words or words.endswith((" left", " right"))
        assert may_flip(sample["messages"]) is not about_sides
        kinds.add(about_sides)
    assert kinds == {True, False}


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("easy_vqa", 1.0, 1.0),
        ("coco_yesno", 0.95, 0.99),
        ("daquar", 0.7, 0.85),
        ("flickr8k", 0.95, 0.99),
        ("chartqa_subset", 0.0, 0.1),
        ("sroie", 0.0, 0.0),
    ],
)
def test_share_of_real_samples_that_may_flip(data_folder, name, least, most):
    samples = read_samples(data_folder / name)[:2000]
    share = np.mean([may_flip(sample["messages"]) for sample in samples])
    assert least <= share <= most


def test_without_flip_all_else_stays():
    crop, jitter = random_crop(2), colour_jitter()
    augment = compose(crop, compose(random_flip(1.0)), jitter)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        cropped = crop(IMAGE, rng)
        rng.random()
        expected = jitter(cropped, rng)
        result = without_flip(augment)(IMAGE, np.random.default_rng(seed))
        assert np.array_equal(result, expected)
        assert not np.array_equal(augment(IMAGE, np.random.default_rng(seed)), expected)
    assert np.array_equal(without_flip(random_flip(1.0))(IMAGE, np.random.default_rng(0)), IMAGE)
    assert without_flip(jitter) is jitter


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
