"""NVLM's three architectures: who sees which tile, gates, packing, caches, files."""

import keras
import numpy as np
import pytest
from tiny_models import logits, numpy, run
from tiny_nvlm import PLACEHOLDER, TAG_IDS, TOKENS, VOCAB, batch, gates_of, tiny_nvlm

from dl_techniques.losses import NanoVLMLoss
from dl_techniques.models.language_decoder import LanguageDecoder
from dl_techniques.models.nvlm import NVLM, NVLM_CONFIGS

ARCHITECTURES = ("decoder", "cross_attention", "hybrid")
READING = ARCHITECTURES[1:]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def models():
    return {name: tiny_nvlm(name) for name in ARCHITECTURES}


def moved(before, after):
    return np.abs(before - after).max(axis=-1) > TOLERANCE


def text_decoder(model):
    """Return the same decoder without cross-attention, with the model's weights."""
    config = {**model.language_config, "cross_attention_every": None}
    decoder = LanguageDecoder(model.vocab_size, **config)
    decoder.build((None, None))
    values = {
        v.path.split("/", 1)[1]: v.value
        for v in model.language_decoder.variables
        if "cross_attention" not in v.path
    }
    for variable in decoder.variables:
        variable.assign(values.pop(next(k for k in values if variable.path.endswith(k))))
    assert not values
    return decoder


@pytest.mark.parametrize("name", READING)
def test_a_new_model_is_its_text_decoder_and_closed_gates_give_it_back(name):
    model, inputs = tiny_nvlm(name, gates=None), batch(name)
    if name == "hybrid":  # The thumbnail is in the sequence: images that are not.
        inputs["text_tokens"] = np.where(
            inputs["text_tokens"] == PLACEHOLDER, 30, inputs["text_tokens"]
        )
    decoder = text_decoder(model)
    expected = numpy(decoder(inputs["text_tokens"], attention_mask=inputs["attention_mask"]))
    np.testing.assert_array_equal(numpy(model(inputs)), expected)
    for gate in gates_of(model):
        gate.assign([0.7])
    opened = numpy(model(inputs))
    assert moved(opened, expected).any()
    for gate in gates_of(model):
        gate.assign([0.0])
    np.testing.assert_array_equal(numpy(model(inputs)), expected)


@pytest.mark.parametrize("name", READING)
def test_rows_of_text_equal_the_text_decoder_with_open_gates(name, models):
    model, inputs = models[name], batch(name)
    inputs["text_tokens"][1] = np.arange(10, 30)
    inputs["num_images"] = np.array([3, 0], "int32")
    expected = numpy(
        text_decoder(model)(inputs["text_tokens"], attention_mask=inputs["attention_mask"])
    )
    np.testing.assert_array_equal(numpy(model(inputs))[1, 2:], expected[1, 2:])
    alone = {"text_tokens": inputs["text_tokens"][1:], "attention_mask": None}
    alone["attention_mask"] = inputs["attention_mask"][1:]
    np.testing.assert_allclose(numpy(model(alone))[0, 2:], expected[1, 2:], atol=TOLERANCE)


@pytest.mark.parametrize("name", READING)
def test_every_tag_is_blind_to_the_other_tiles(name, models):
    model, inputs = models[name], batch(name)
    before = logits(model, inputs)
    tags = {1: 2, 2: 4, 3: 8}  # Image -> place of its tag in row 0.
    for image, place in tags.items():
        images = inputs["images"].copy()
        images[0, image - 1] += 1.0
        changed = moved(before, logits(model, {**inputs, "images": images}))
        assert not changed[0, :place].any() and not changed[1].any()
        if name == "cross_attention" or image < 3:  # The thumbnail is not cross-attended.
            assert changed[0, place]
        # Tags behind it see text that saw the tile, so that what they see through the mask alone
        # shows in a decoder of one block; here all text behind it must see the tile.
        assert changed[0, 13:].all()


@pytest.mark.parametrize("name", READING)
def test_the_mask_by_hand(name, models):
    # Row -> from which place on which images are seen; in H the last one is in the sequence.
    by_row = {
        "cross_attention": (
            {2: {1}, 4: {2}, 5: {1, 2}, 8: {3}, 9: {1, 2, 3}},
            {3: {1}, 6: {2}, 7: {1, 2}},
        ),
        "hybrid": ({2: {1}, 4: {2}, 5: {1, 2}, 8: set(), 9: {1, 2}}, {3: {1}, 6: set(), 7: {1}}),
    }[name]
    tokens = TOKENS + (name == "hybrid")  # The embedding of the tag stands before its tile's.
    expected = np.zeros((2, 1, 20, 3 * tokens), bool)
    for row, changes in enumerate(by_row):
        seen = set()
        for place in range(20):
            seen = changes.get(place, seen)
            for image in seen:
                expected[row, 0, place, (image - 1) * tokens : image * tokens] = True
    mask = run(lambda x: models[name].embed(x)["context_mask"], batch(name))
    np.testing.assert_array_equal(mask, expected)


def test_a_tag_sees_its_own_tile_alone_in_one_block():
    changes = {"num_layers": 1, "hidden_dim": 24, "num_heads": 4, "mlp_dim": 32}
    model = tiny_nvlm("cross_attention", language_config={**changes, "cross_attention_every": 1})
    inputs = batch("cross_attention")
    before = logits(model, inputs)
    for image, place in {1: 2, 2: 4, 3: 8}.items():
        images = inputs["images"].copy()
        images[0, image - 1] += 1.0
        expected = np.zeros(20, bool)
        expected[place:] = True
        expected[[t for t in (2, 4, 8) if t != place]] = False
        after = logits(model, {**inputs, "images": images})
        np.testing.assert_array_equal(moved(before, after)[0], expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_documents_equal_separate_ones(name, models):
    model, inputs = models[name], batch(name)
    rows = [inputs["text_tokens"][0], inputs["text_tokens"][1, 2:]]
    packed = {
        "text_tokens": np.concatenate(rows)[None],
        "segment_ids": np.repeat([1, 2], [len(r) for r in rows])[None].astype("int32"),
        "images": np.concatenate([inputs["images"][0], inputs["images"][1, :2]])[None],
    }
    separate = logits(model, inputs)
    together = logits(model, packed)[0]
    np.testing.assert_allclose(together[:20], separate[0], atol=TOLERANCE)
    np.testing.assert_allclose(together[20:], separate[1, 2:], atol=TOLERANCE)
    images = packed["images"].copy()
    images[0, 0] += 1.0
    changed = moved(together, logits(model, {**packed, "images": images})[0])
    assert changed[:20].any() and not changed[20:].any()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_generation_equals_reading_everything_again(name, models):
    model, inputs = models[name], batch(name)
    new = model.generate(inputs, max_new_tokens=4, stop_ids=[])
    text = np.concatenate([inputs["text_tokens"], new], axis=1)
    mask = np.pad(inputs["attention_mask"], ((0, 0), (0, 4)), constant_values=True)
    scores = logits(model, {**inputs, "text_tokens": text, "attention_mask": mask})[:, -5:-1]
    scores[..., list(model.image_mark_ids)] = -np.inf
    np.testing.assert_array_equal(new, scores.argmax(-1))


@pytest.mark.parametrize("name", READING)
def test_padding_on_the_other_side_changes_nothing(name, models):
    model, inputs = models[name], batch(name)
    right = {**inputs}
    for key in ("text_tokens", "attention_mask"):
        right[key] = inputs[key].copy()
        right[key][1] = np.roll(inputs[key][1], -2)
    left, right = logits(model, inputs), logits(model, right)
    np.testing.assert_allclose(right[1, :18], left[1, 2:], atol=TOLERANCE)


def test_tags_of_several_tokens_come_as_an_array(models):
    inputs = batch("cross_attention")
    tags = np.zeros((2, 20), "int32")
    tags[0, [2, 4, 8]], tags[1, [3, 6]] = [1, 2, 3], [1, 2]
    model = models["cross_attention"]
    expected = logits(model, inputs)
    np.testing.assert_allclose(
        logits(model, {**inputs, "image_tags": tags}), expected, atol=TOLERANCE
    )
    new = model.generate({**inputs, "image_tags": tags}, max_new_tokens=3, stop_ids=[])
    np.testing.assert_array_equal(new, model.generate(inputs, max_new_tokens=3, stop_ids=[]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_training_step_reaches_gates_tags_and_tiles(name):
    model, inputs = tiny_nvlm(name, gates=0.3), batch(name)
    labels = np.where(np.isin(inputs["text_tokens"], [PLACEHOLDER, *TAG_IDS]), -100, 9)
    before = {v.path: numpy(v.value) for v in model.trainable_variables}
    model.compile(keras.optimizers.SGD(0.1), NanoVLMLoss())
    first = model.train_on_batch(inputs, labels.astype("int32"), return_dict=True)["loss"]
    still = [p for p, x in before.items() if np.array_equal(x, numpy(_of(model, p)))]
    # Of the keys' biases a softmax knows nothing.
    assert [p for p in still if "k_proj/bias" not in p] == []
    assert model.train_on_batch(inputs, labels, return_dict=True)["loss"] < first


def _of(model, path):
    return next(v for v in model.variables if v.path == path).value


@pytest.mark.parametrize("name", READING)
def test_rematerialisation_changes_nothing(name):
    results = []
    for remat in (False, True):
        model, inputs = tiny_nvlm(name, gates=0.3), batch(name)
        model.language_decoder.remat = remat
        model.compile(keras.optimizers.SGD(0.1), NanoVLMLoss())
        model.train_on_batch(inputs, inputs["text_tokens"])
        results.append([numpy(v.value) for v in model.trainable_variables])
    for plain, again in zip(*results, strict=True):
        np.testing.assert_allclose(plain, again, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_file_gives_the_model_back(name, models, tmp_path):
    model, inputs = models[name], batch(name)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert again.arguments() == model.arguments()
    np.testing.assert_array_equal(numpy(again(inputs)), numpy(model(inputs)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_everything_on_the_way_to_the_logits(name, models):
    model, inputs = models[name], batch(name)
    found = model(inputs, return_dict=True)
    np.testing.assert_allclose(numpy(found["logits"]), numpy(model(inputs)), atol=TOLERANCE)
    assert found["hidden_states"].shape == (2, 20, 24)
    assert found["vision_embeds"].shape == (2, 3, TOKENS, 24)
    assert (
        model({"text_tokens": inputs["text_tokens"][:1] * 0 + 9}, return_dict=True)["vision_embeds"]
        is None
    )
    symbolic = {k: keras.Input(v.shape[1:], dtype=v.dtype.name) for k, v in inputs.items()}
    described = model(symbolic, return_dict=True)
    assert model(symbolic).shape == described["logits"].shape == (None, 20, VOCAB)
    assert described["vision_embeds"].shape == (None, 3, TOKENS, 24)


def test_bad_batches_are_refused(models):
    inputs = batch("cross_attention")
    model = models["cross_attention"]
    with pytest.raises(ValueError, match=r"Row 1 has the tags \[1, 2\], expected those of its 3"):
        model({**inputs, "num_images": None})
    tags = np.zeros((2, 20), "int32")
    tags[0, [2, 4, 8]], tags[1, [3, 6]] = [1, 3, 2], [1, 2]
    with pytest.raises(ValueError, match=r"Row 0 has the tags \[1, 3, 2\]"):
        model({**inputs, "image_tags": tags})
    inputs = batch("hybrid")
    inputs["text_tokens"][0, 12] = 20
    with pytest.raises(ValueError, match="Row 0 has 3 placeholders .* from place 9 on, expected 4"):
        models["hybrid"](inputs)
    inputs = batch("hybrid")  # A run of the right length, but behind a text token.
    inputs["text_tokens"][1, 7:12] = [20, *[PLACEHOLDER] * 4]
    with pytest.raises(ValueError, match="Row 1 has 4 placeholders .* right behind the tag"):
        models["hybrid"](inputs)
    with pytest.raises(ValueError, match="unknown keys"):
        models["decoder"]({**batch("decoder"), "image_tags": tags})
    without = tiny_nvlm("cross_attention", tile_tag_ids=None)
    with pytest.raises(ValueError, match="needs image_tags: the model has no tile_tag_ids"):
        without(batch("cross_attention"))


@pytest.mark.parametrize("name", READING)
def test_rows_that_the_host_did_not_see_become_nan(name, models):
    inputs = batch(name)
    inputs["num_images"] = np.array([3, 1], "int32")
    found = run(lambda x: models[name].embed(x)["inputs"], inputs)
    assert np.isnan(found[1]).all() and not np.isnan(found[0]).any()
    if name == "hybrid":
        inputs = batch(name)
        inputs["text_tokens"][0, 12] = 20
        found = run(lambda x: models[name].embed(x)["inputs"], inputs)
        assert np.isnan(found[0]).all() and not np.isnan(found[1]).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "mixed"}, "architecture='mixed' must be one of"),
        ({"architecture": "decoder"}, "has no cross_attention_every"),
        ({"language_config": {"num_layers": 2}}, "needs language_config's cross_attention_every"),
        ({"image_token_id": 3}, "has no image_token_id"),
        ({"architecture": "hybrid"}, "needs image_token_id"),
    ],
)
def test_arguments_that_do_not_go_together(changes, message):
    arguments = {**NVLM.presets["nvlm_mini_x"], **changes}
    with pytest.raises(ValueError, match=message):
        NVLM(**arguments)


def test_unknown_names_and_periods():
    with pytest.raises(ValueError, match="Unknown model 'nvlm_1b'"):
        NVLM.create("nvlm_1b")
    assert all(NVLM_CONFIGS[f"nvlm_mini_{x}"]["total_params"] <= 5e6 for x in "dxh")
    with pytest.raises(ValueError, match="cross_attention_every=5 must be None or lie in"):
        LanguageDecoder(VOCAB, 24, 4, 4, 32, cross_attention_every=5)
    with pytest.raises(ValueError, match="has no cross-attention"):
        decoder = LanguageDecoder(VOCAB, 24, 1, 4, 32)
        decoder(np.ones((1, 2), "int32"), context=np.ones((1, 2, 24), "float32"))
