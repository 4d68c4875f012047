import numpy as np

from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.image_processors import NVLMImageProcessor


def picture(value):
    return np.full((4, 4, 3), value, np.uint8)


TURN = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
IMAGES = [picture(255), picture(0)]
USED = VQADataProcessor(4, 40, image_token_id=5, tokens_per_image=2)


def test_tensorflow_dataset():
    samples = [
        {"image_path": picture(k), "question": f"q{k}", "answer": "a"} for k in range(0, 250, 50)
    ]
    used = VQADataProcessor(4, 40)
    batches = list(used.create_tensorflow_dataset(samples, 2, shuffle=False))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    inputs, labels = batches[1]
    assert set(inputs) == {"images", "text_tokens"}
    expected = used.preprocess_text("q100", "a")
    assert np.array_equal(inputs["text_tokens"][0], expected["input_ids"])
    assert np.array_equal(labels[0], expected["labels"])
    assert np.array_equal(inputs["images"][1], used.preprocess_image(picture(150)))
    data = used.create_tensorflow_dataset(samples, 5)
    assert data.element_spec[0]["images"].shape == (None, 4, 4, 3)
    passes = [next(iter(data))[0]["text_tokens"].numpy().tolist() for _ in range(3)]
    assert sorted(passes[0]) == sorted(passes[1]) and not passes[0] == passes[1] == passes[2]


def test_tensorflow_dataset_with_uneven_images():
    samples = [{"id": "a", "messages": TURN}, {"id": "b", "messages": TURN, "images": IMAGES}]
    data = USED.create_tensorflow_dataset(samples, 1, shuffle=False)
    first, second = [inputs for inputs, _ in data]
    assert first["images"].shape == (1, 2, 4, 4, 3) and first["num_images"].numpy() == [0]
    assert second["num_images"].numpy() == [2] and float(second["images"][0, 0, 0, 0, 0]) == 1.0
    text_only = USED.create_tensorflow_dataset(samples[:1], 1)
    assert set(next(iter(text_only))[0]) == {"text_tokens"}


def test_tensorflow_dataset_of_tiles():
    used = VQADataProcessor(
        max_text_length=80, image_processor=NVLMImageProcessor(image_size=4, max_num=4)
    )
    wide = np.concatenate([picture(255), picture(0)], axis=1)
    samples = [{"id": "a", "messages": TURN, "images": [image]} for image in (wide, picture(9))]
    batches = used.create_tensorflow_dataset(samples, 1, shuffle=False)
    for image, (inputs, _) in zip((wide, picture(9)), batches, strict=True):
        tiles = used.preprocess_tiles(image)
        assert inputs["images"].shape == (1, 3, 4, 4, 3)
        assert inputs["num_images"].numpy().tolist() == [len(tiles)]
        np.testing.assert_array_equal(inputs["images"][0, : len(tiles)], tiles)
