"""Images are encoded once; nothing but the same image, settings and weights finds an embedding."""

import io

import numpy as np
import pytest
from keras import ops
from PIL import Image
from tiny_chat import chat_model, chat_processor, count_programs, picture, png, user

from dl_techniques.generation import VisionCache
from dl_techniques.generation.vision_cache import encoder_digest, image_digest, settings_digest
from dl_techniques.preprocessing.images import ImageProcessor

NEW = 5


def embedding(value, dtype="float32"):
    """Return an embedding of 64 bytes (32 in half precision)."""
    return ops.full((4, 4), value, dtype=dtype)


def test_an_entry_keeps_nothing_else_in_memory():
    cache, batch = VisionCache(1000), np.ones((8, 4, 4), "float32")
    cache.put("a", batch[:1])
    batch[:] = 0
    assert cache.get("a").all() and cache.get("a").base is None


def test_a_padded_number_of_images(chat):
    images = np.zeros((5, 32, 32, 3), "float32")
    assert chat.generation_engine().encode(images).shape[0] == 5


@pytest.fixture
def cached(chat, monkeypatch):
    """The shared model with a cache, and the counts of its programs' calls."""
    monkeypatch.setattr(chat, "vision_cache", VisionCache())
    return chat, count_programs(monkeypatch, chat)


def test_hits_and_misses_are_counted():
    cache = VisionCache(1000)
    assert cache.get("a") is None
    cache.put("a", embedding(1.0))
    np.testing.assert_array_equal(ops.convert_to_numpy(cache.get("a")), np.ones((4, 4)))
    expected = {"hits": 1, "misses": 1, "entries": 1, "bytes": 64, "max_bytes": 1000}
    assert cache.stats() == expected
    cache.clear()
    assert cache.get("a") is None
    assert cache.stats() == expected | {"misses": 2, "entries": 0, "bytes": 0}


def test_what_was_used_longest_ago_is_dropped():
    cache = VisionCache(3 * 64)
    for key in "abc":
        cache.put(key, embedding(1.0))
    cache.get("a")
    cache.put("d", embedding(1.0))
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]
    cache.put("e", embedding(1.0, "bfloat16"))  # Half as large, but the budget was full.
    assert [key for key in "acde" if cache.get(key) is not None] == ["c", "d", "e"]
    assert cache.stats()["bytes"] == 64 + 64 + 32
    cache.put("f", ops.zeros((8, 8)))
    assert cache.get("f") is None and cache.stats()["entries"] == 3
    cache.put("c", embedding(2.0))
    assert cache.stats()["bytes"] == 160


def test_a_row_of_a_batch_does_not_keep_the_batch():
    cache, batch = VisionCache(1000), ops.ones((100, 4, 4))
    cache.put("a", batch[3])
    kept = cache.get("a")
    if hasattr(kept, "untyped_storage"):
        assert kept.untyped_storage().nbytes() == 64
    assert kept.shape == (4, 4)


def test_no_room_at_all():
    cache = VisionCache(0)
    cache.put("a", embedding(1.0))
    assert cache.stats()["entries"] == 0
    with pytest.raises(ValueError, match="max_bytes=-1 must be at least 0"):
        VisionCache(-1)


def test_the_same_encoded_image_from_every_source_has_one_digest(tmp_path):
    data = png(picture(0))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    read = io.BytesIO(data)
    read.read()  # An open file that was read before is still the same image.
    sources = [path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), read]
    assert len({image_digest(source) for source in sources}) == 1
    assert image_digest(png(picture(1))) != image_digest(data)


def test_images_in_memory_differ_by_shape_type_and_mode():
    flat = np.zeros((4, 4, 3), np.uint8)
    grey = Image.fromarray(np.zeros((4, 12), np.uint8))
    palette, other_palette = grey.convert("P"), grey.convert("P")
    other_palette.putpalette([5] * 768)
    with_alpha = [palette.copy() for _ in range(2)]
    for image, alpha in zip(with_alpha, (3, 4), strict=True):
        image.putpalette([5, 5, 5, alpha] * 256, "RGBA")
    pairs = [image.convert("PA") for image in (palette, other_palette)]
    different = [
        flat,
        flat.reshape(2, 8, 3),
        flat.reshape(8, 2, 3),
        flat.reshape(4, 12),
        flat.reshape(4, 12).view(np.uint16),
        flat + np.uint8(1),
        Image.fromarray(flat),
        Image.fromarray(flat.reshape(2, 8, 3)),
        grey,
        palette,
        other_palette,
        *with_alpha,
        *pairs,
        flat.tobytes(),
    ]
    assert len({image_digest(image) for image in different}) == len(different)
    array = picture(3)
    assert image_digest(array[::-1]) == image_digest(np.ascontiguousarray(array[::-1]))
    assert image_digest(Image.fromarray(array)) == image_digest(Image.fromarray(array.copy()))


@pytest.mark.parametrize("wrong", [5, None, [[1, 2], [3, 4]], object()])
def test_what_is_no_image_is_refused(wrong):
    with pytest.raises(ValueError, match="is no image source"):
        image_digest(wrong)


def test_settings_of_the_preprocessing_have_their_digests():
    settings = [{}, {"image_size": 8}, {"mean": 0.4}, {"std": 0.4}, {"resample": "box"}]
    digests = [
        settings_digest(ImageProcessor(**{"image_size": 16} | s).get_config()) for s in settings
    ]
    assert len(set(digests)) == len(settings)
    assert settings_digest(ImageProcessor(16).get_config()) == digests[0]


def test_weights_of_the_encoder_have_their_digests():
    model = chat_model()
    seen = [encoder_digest(model)]
    assert encoder_digest(model) == seen[0]
    weights = [*model.vision_encoder.weights, *model.modality_projection.weights]
    for weight in weights[::5]:
        value = ops.convert_to_numpy(weight.value).copy()
        first = value.reshape(-1)
        first[0] += 0.01
        weight.assign(value)
        seen.append(encoder_digest(model))
    # The same values in another order are other weights; sums of whole numbers are exact.
    numbers = np.arange(np.prod(weights[0].shape), dtype="float32").reshape(weights[0].shape)
    for order in (numbers, np.flip(numbers, axis=0).copy()):
        weights[0].assign(order)
        seen.append(encoder_digest(model))
    assert len(set(seen)) == len(weights[::5]) + 3
    # The decoder has no part in it.
    table = model.language_decoder.token_embedding.embeddings
    table.assign(table + 1)
    assert encoder_digest(model) == seen[-1]


def test_a_known_image_is_not_encoded_again(cached):
    model, counts = cached
    image = picture(0)
    first = model.generate([user("what?", image)], NEW)
    assert counts["encode"] == 1
    assert model.generate([user("what?", image.copy())], NEW) == first
    model.generate([user("and this?", image)], NEW)
    assert counts["encode"] == 1 and model.vision_cache.stats()["hits"] == 2
    model.generate([user("what?", image, picture(1))], NEW)
    model.generate([[user("what?", picture(1))], [user("what?", image, image)]], NEW)
    assert counts["encode"] == 2 and model.vision_cache.stats()["entries"] == 2
    model.vision_cache.clear()
    assert model.generate([user("what?", image)], NEW) == first
    assert counts["encode"] == 3


def test_an_image_twice_in_a_batch_is_encoded_once_even_without_a_cache(chat, monkeypatch):
    counts = count_programs(monkeypatch, chat)
    sizes = []
    encode = chat.generation_engine().programs.encode
    monkeypatch.setattr(
        chat.generation_engine().programs,
        "encode",
        lambda images: sizes.append(len(images)) or encode(images),
    )
    chat.generate([[user("what?", picture(0))], [user("which?", picture(0), picture(1))]], NEW)
    assert sizes == [2] and counts["encode"] == 1


def test_results_are_those_without_a_cache(cached, monkeypatch):
    model, _ = cached
    questions = [[user("what?", picture(k), picture(k + 1))] for k in range(3)]
    for question in questions:
        model.generate(question, NEW)
    with_cache, logprobs = model.generate(questions, NEW, return_logprobs=True)
    monkeypatch.setattr(model, "vision_cache", None)
    without, expected = model.generate(questions, NEW, return_logprobs=True)
    assert with_cache == without
    np.testing.assert_allclose(logprobs, expected, atol=1e-5)


def test_no_old_embedding_after_another_preprocessing(cached, monkeypatch):
    model, counts = cached
    question = [user("what?", picture(0, size=24))]
    model.generate(question, NEW)
    processor = chat_processor(image_processor=ImageProcessor(16, mean=0.1))
    monkeypatch.setattr(model, "processor", processor)
    _, logprobs = model.generate(question, NEW, return_logprobs=True)
    assert counts["encode"] == 2
    monkeypatch.setattr(model, "vision_cache", None)
    np.testing.assert_allclose(model.generate(question, NEW, return_logprobs=True)[1], logprobs)


def test_no_old_embedding_after_another_training_step(monkeypatch):
    model = chat_model()
    model.vision_cache = VisionCache()
    question = [user("what?", picture(0))]
    _, before = model.generate(question, NEW, return_logprobs=True)
    bias = model.modality_projection.weights[0]
    bias.assign(bias + 0.05)
    _, after = model.generate(question, NEW, return_logprobs=True)
    assert np.abs(before - after).max() > 1e-3
    model.vision_cache = None
    _, expected = model.generate(question, NEW, return_logprobs=True)
    np.testing.assert_allclose(after, expected, atol=1e-6)
