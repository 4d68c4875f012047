"""TrainingStream: one order for any number of workers and processes, exact resume."""

import json

import numpy as np
import pytest
from tiny_streams import (
    LENGTH,
    answers,
    assert_same,
    brighter,
    png,
    processor,
    sample,
    sources,
    stream,
    take,
)

from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.sources import open_source
from dl_techniques.datasets.stream import StreamSettings, TrainingStream
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.tokenizer import load_tokenizer


@pytest.mark.parametrize("tiled", [False, True])
def test_a_batch_is_what_a_model_takes(tiled):
    used = stream(tiled=tiled, max_tiles=12)
    for inputs, labels in take(iter(used), 6):
        assert inputs["text_tokens"].shape == labels.shape == (2, LENGTH)
        tiles = inputs["num_images"]
        placeholders = (inputs["text_tokens"] == used.processor.image_token_id).sum(axis=1)
        np.testing.assert_array_equal(placeholders, 2 * tiles)
        assert tiles.max() <= 12 and inputs["images"].shape[1] >= tiles.max()
        assert inputs["images"].shape[2:] == (4, 4, 3)
        for row, count in enumerate(tiles):
            assert not inputs["images"][row, count:].any()
        np.testing.assert_array_equal(inputs["attention_mask"], inputs["segment_ids"] > 0)
        starts = np.diff(inputs["segment_ids"], axis=1, prepend=0) > 0
        assert not inputs["positions"][starts].any()
        assert (labels[starts] == -100).all()


def test_the_order_does_not_depend_on_the_workers():
    expected = take(iter(stream(augment=brighter)), 8)
    for workers in (1, 3):
        iterator = iter(stream(augment=brighter, workers=workers))
        assert_same(take(iterator, 8), expected)
        iterator.close()
    same = {"short": [sample(k, f"what {k}?", "x", [png(0)]) for k in range(8)]}
    inputs, _ = next(iter(stream(same, augment=brighter, batch_size=1)))
    seen = {image.tobytes() for image in inputs["images"][0, : inputs["num_images"][0]]}
    assert len(seen) == inputs["num_images"][0] > 1  # Each sample has its own random numbers.
    changed = take(iter(stream(augment=brighter, seed=1)), 1)
    assert not np.array_equal(changed[0][0]["images"], expected[0][0]["images"])


def test_fifty_random_steps_can_be_resumed_with_other_workers():
    steps, more = 80, 3
    whole = take(iter(stream(augment=brighter)), steps + more)
    iterator = iter(stream(augment=brighter, workers=2))
    chosen = set(np.random.default_rng(0).choice(steps, 50, replace=False).tolist())
    for step in range(steps):
        if step in chosen:
            state = json.loads(json.dumps(iterator.get_state()))
            again = iter(stream(augment=brighter, workers=step % 3))
            again.set_state(state)
            assert again.get_state() == state
            assert_same(take(again, more), whole[step : step + more])
            again.close()
        next(iterator)
    iterator.set_state(state)  # Back to the last of them.
    assert_same(take(iterator, more), whole[max(chosen) : max(chosen) + more])
    iterator.close()


def test_two_processes_see_together_what_one_sees():
    def rows(batches):
        return [
            (inputs["text_tokens"][row].tolist(), labels[row].tolist())
            for inputs, labels in batches
            for row in range(len(labels))
            if inputs["attention_mask"][row].any()
        ]

    alone = rows(stream(epochs=2))
    parts = [rows(stream(epochs=2, process_index=k, process_count=2)) for k in range(2)]
    assert len(parts[0]) - len(parts[1]) in (0, 1)
    together = [row for k in range(len(alone)) for row in parts[k % 2][k // 2 : k // 2 + 1]]
    assert together == alone


def test_every_sample_arrives_once_an_epoch():
    found = answers(stream(epochs=1))
    expected = [m["messages"][1]["content"].strip() for each in sources().values() for m in each]
    assert sorted(found) == sorted(expected)


def test_processes_give_what_threads_give():
    iterator = iter(stream(workers=2, kind="process"))
    assert_same(take(iterator, 3), take(iter(stream()), 3))
    iterator.close()


def test_wrong_settings_and_other_data_are_refused():
    with pytest.raises(ValueError, match="process_index"):
        StreamSettings(8, 1, process_index=2, process_count=2)
    with pytest.raises(ValueError, match="worker_kind"):
        stream(kind="fork")
    with pytest.raises(ValueError, match="have placeholders or tags"):
        plain = VQADataProcessor(4, LENGTH, tokenizer=processor().tokenizer)
        TrainingStream(sources(), plain, Mixture(None), StreamSettings(LENGTH, 1))
    iterator = iter(stream())
    take(iterator, 3)
    with pytest.raises(ValueError, match="lengths"):
        iter(stream(sources(short=41))).set_state(iterator.get_state())
    with pytest.raises(ValueError, match="not that of a packer"):
        iter(stream(lookahead=5)).set_state(iterator.get_state())


def test_each_token_names_its_source_and_rows_can_have_one_document():
    used = stream(max_documents=1)
    iterator = iter(used)
    names, seen = list(used.sources), set()
    for _ in range(6):
        inputs, _ = next(iterator)
        assert inputs["segment_ids"].max() == 1
        np.testing.assert_array_equal(inputs["source_ids"] > 0, inputs["attention_mask"])
        found = [names[row.max() - 1] for row in inputs["source_ids"] if row.any()]
        assert found == [name.split("/")[0] for name in iterator.sample_ids()]
        seen |= set(found)
    assert seen == set(names)


def test_fit_takes_it():
    import keras
    from tiny_models import IMAGE_SIZE, TOKENS_PER_IMAGE, tiny_nanovlm

    from dl_techniques.losses.nanovlm_loss import NanoVLMLoss
    from dl_techniques.optimization import ComponentOptimizer

    own = processor(image_size=IMAGE_SIZE, tokens_per_image=TOKENS_PER_IMAGE)
    mixture = Mixture({"short": 0.3, "long": 0.7})
    used = TrainingStream(sources(), own, mixture, StreamSettings(LENGTH, 2))
    language = {"hidden_dim": 24, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
    model = tiny_nanovlm(
        language_config={**language, "max_positions": LENGTH},
        vocab_size=own.vocab_size,
        image_token_id=own.image_token_id,
    )
    # Some batches are text only: it takes the missing gradients of the vision encoder as zero.
    parts = ("vision_encoder", "modality_projection", "language_decoder")
    optimizer = ComponentOptimizer({part: keras.optimizers.SGD(0.1) for part in parts})
    model.compile(optimizer=optimizer, loss=NanoVLMLoss())
    history = model.fit(used, steps_per_epoch=3, verbose=0, shuffle=False)
    assert np.isfinite(history.history["loss"][0])


def test_plain_text_is_learned_whole_in_rows_length():
    text = "".join("abcdefghij"[k % 10] for k in range(2 * LENGTH + 20))
    used = {"text": [{"text": text, "id": "t", "source": "s"}, {"text": "", "id": "e"}]}
    iterator = iter(stream(used, epochs=1, max_bad_share=0.5))
    batches = list(iterator)
    rows = [
        (ids[mask], label[mask])
        for inputs, labels in batches
        for ids, mask, label in zip(
            inputs["text_tokens"], inputs["attention_mask"], labels, strict=True
        )
        if mask.any()
    ]
    eos = stream().processor.eos_token_id
    assert sorted(len(ids) for ids, _ in rows) == [21, LENGTH, LENGTH]
    by_length = sorted(rows, key=lambda row: len(row[0]))
    assert "".join(chr(i) for i in by_length[0][0][:-1]) == text[2 * LENGTH :]
    assert by_length[0][0][-1] == by_length[0][1][-1] == eos
    for ids, labels in rows:
        assert labels[0] == -100 and (labels[1:] == ids[1:]).all()
    assert [item.reason for item in iterator.report().items] == ["empty text"]


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_the_end_of_a_plain_text_is_learned_wherever_it_is_cut(extra):
    text = ("ab" * (LENGTH + 1))[: 2 * LENGTH + extra]
    used = {"text": [{"text": text, "id": "t", "source": "s"}]}
    learned = []
    for inputs, labels in stream(used, epochs=1, lookahead=1):
        learned += [row[row != -100].tolist() for row in labels if (row != -100).any()]
        assert (inputs["segment_ids"].max(axis=1) <= 1).all()
    eos = stream().processor.eos_token_id
    rows = 2 if extra < 0 else 3
    assert len(learned) == rows and learned[-1][-1] == eos
    assert sum(map(len, learned)) == len(text) + 1 - rows  # The first token of each is not.


@pytest.mark.data
def test_real_sources_of_several_kinds(data_folder):
    names = ("easy_vqa", "daquar", "flickr8k", "text")
    used = {name: open_source(data_folder / name) for name in names}
    tokenizer = load_tokenizer(data_folder / "tokenizers" / "smollm2")
    (image_id,) = tokenizer.add_special_tokens(["<|image|>"])
    real = VQADataProcessor(
        32, 1024, tokenizer=tokenizer, image_token_id=image_id, tokens_per_image=16
    )
    mixture = Mixture({"easy_vqa": 0.2, "daquar": 0.2, "flickr8k": 0.3, "text": 0.3}, seed=1)
    settings = StreamSettings(1024, 4)
    iterator = iter(TrainingStream(used, real, mixture, settings, workers=2))
    batches = take(iterator, 10)
    state = iterator.get_state()
    used_tokens = np.mean([inputs["attention_mask"].mean() for inputs, _ in batches])
    assert used_tokens > 0.97 and not len(iterator.report())
    expected = take(iterator, 3)
    iterator.close()
    again = iter(TrainingStream(used, real, mixture, settings, workers=0))
    again.set_state(json.loads(json.dumps(state)))
    assert_same(take(again, 3), expected)


def test_long_conversations_are_split_or_dropped():
    turns = [("what?", "a" * 30), ("and?", "b" * 30), ("or?", "c" * 30)]
    messages = [m for q, a in turns for m in sample("x", q, a)["messages"]]
    mixed = [{"id": "long", "images": [png(0)], "messages": messages}]
    mixed += [sample(k, "what?", "short") for k in range(3)]
    iterator = iter(stream({"a": mixed}, epochs=1, batch_size=1))
    batches = list(iterator)
    assert sorted(answers(batches)) == sorted(["a" * 30, "b" * 30, "c" * 30, *["short"] * 3])
    assert sum(int(inputs["num_images"].sum()) for inputs, _ in batches) == 3
    iterator = iter(stream({"a": mixed}, epochs=1, long_samples="drop", max_bad_share=0.5))
    assert answers(iterator) == ["short"] * 3
    assert iterator.report().by_source == {("a", "too long"): 1}
    with pytest.raises(ValueError, match="long_samples"):
        stream(long_samples="truncate")
