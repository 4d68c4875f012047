"""TrainingStream: one order for any number of workers and processes, exact resume, quarantine."""

import io
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.sources import open_source
from dl_techniques.datasets.stream import StreamSettings, TrainingStream
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.image_processors import Idefics3ImageProcessor
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer, load_tokenizer

LENGTH = 96


def processor(tiled=False):
    tokenizer = CharacterTokenizer(128)
    (image_id,) = tokenizer.add_special_tokens(["<image>"])
    tokenizer.add_special_tokens(["<fake_token_around_image>", "<global-img>"])
    tokenizer.add_special_tokens([f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)])
    return VQADataProcessor(
        4,
        LENGTH,
        tokenizer=tokenizer,
        image_token_id=image_id,
        tokens_per_image=2,
        image_processor=Idefics3ImageProcessor(4, 8) if tiled else None,
    )


def png(seed, size=(6, 9)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sample(name, question, answer, images=(), source=""):
    return {
        "id": str(name),
        "source": source,
        "images": list(images),
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
    }


def sources(short=40, long=25):
    """Short answers about pictures, long ones without, and samples with several parts."""
    return {
        "short": [sample(k, f"what {k}?", "ab"[k % 2], [png(k)]) for k in range(short)],
        "long": [sample(k, f"why {k}?", f"because {k} " * (1 + k % 5)) for k in range(long)],
    }


def stream(used=None, epochs=None, workers=0, augment=None, kind="thread", tiled=False, **settings):
    shares = {"short": 0.3, "long": 0.7}
    used = sources() if used is None else used
    return TrainingStream(
        used,
        processor(tiled),
        Mixture({name: shares.get(name, 1.0) for name in used}, epochs=epochs, seed=3),
        StreamSettings(**{"length": LENGTH, "batch_size": 2, "lookahead": 4, **settings}),
        augment,
        workers,
        kind,
    )


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same(one, other):
    assert len(one) == len(other)
    for (a, b), (c, d) in zip(one, other, strict=True):
        np.testing.assert_array_equal(b, d)
        assert a.keys() == c.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], c[key], key)


def brighter(pixels, rng):
    return np.minimum(pixels.astype(np.int32) + rng.integers(50), 255).astype(np.uint8)


def answers(batches):
    """Return what is learned, document by document, as text."""
    found = []
    for inputs, labels in batches:
        for row in range(len(labels)):
            segments = inputs["segment_ids"][row]
            for k in range(1, segments.max(initial=0) + 1):
                learned = labels[row][(segments == k) & (labels[row] != -100)]
                found.append("".join(chr(i) for i in learned if i > 2).strip())
    return found


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


def test_every_step_can_be_resumed_with_other_workers():
    steps, more = 12, 4
    whole = take(iter(stream(augment=brighter)), steps + more)
    iterator = iter(stream(augment=brighter, workers=2))
    for step in range(steps):
        state = json.loads(json.dumps(iterator.get_state()))
        again = iter(stream(augment=brighter, workers=step % 3))
        again.set_state(state)
        assert again.get_state() == state
        assert_same(take(again, more), whole[step : step + more])
        again.close()
        next(iterator)
    iterator.set_state(state)
    assert_same(take(iterator, more), whole[steps - 1 : steps - 1 + more])
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


def broken(kind):
    """Return a sample that cannot be used, and why."""
    good = png(0)
    turns = {"question": "what?", "answer": "no"}
    images = {
        "truncated image": good[: len(good) // 2],
        "unreadable image": b"no picture at all",
        "missing image": "/nowhere/a.png",
        "empty image": b"",
        "unsupported image": 3,
        "float image": np.full((4, 4, 3), np.nan),
    }
    if kind in images:
        reasons = {"empty image": "unreadable image", "float image": "unsupported image"}
        return sample("x", "what?", "no", [images[kind]]), reasons.get(kind, kind)
    rows = {
        "empty answer": (sample("x", "what?", " "), "empty answer"),
        "no answer": ({"id": "x", "messages": [{"role": "user", "content": "?"}]}, "no answer"),
        "too long": (sample("x", "what?", "no" * LENGTH), "too long"),
        "no dict": (7, "malformed sample"),
        "no messages": ({"id": "x"}, "malformed sample"),
        "messages no list": ({"id": "x", "messages": "hello"}, "malformed sample"),
        "wrong role": (
            {"id": "x", "messages": [{"role": "narrator", "content": "?"}]},
            "malformed messages",
        ),
        "answer no text": ({**turns, "answer": 3}, "malformed messages"),
        "question None": ({**turns, "question": None}, "malformed messages"),
    }
    return rows[kind]


KINDS = (
    "truncated image",
    "unreadable image",
    "missing image",
    "empty image",
    "unsupported image",
    "float image",
    "empty answer",
    "no answer",
    "too long",
    "no dict",
    "no messages",
    "messages no list",
    "wrong role",
    "answer no text",
    "question None",
)


def test_three_hundred_bad_samples_among_three_thousand_good_ones():
    good = [sample(k, "what?", f"a{k}", [png(k % 7)] if k % 3 else []) for k in range(3000)]
    mixed, reasons = [], {}
    rng = np.random.default_rng(0)
    places = set(rng.choice(3300, 300, replace=False).tolist())
    waiting = iter(good)
    for place in range(3300):
        if place in places:
            bad, reason = broken(KINDS[len(reasons) % len(KINDS)])
            reasons[f"mixed/{place}"] = reason
            mixed.append(bad)
        else:
            mixed.append(next(waiting))
    used = stream({"mixed": mixed}, epochs=1, workers=2, max_bad_share=0.1, batch_size=8)
    iterator = iter(used)
    found = answers(iterator)
    assert sorted(found) == sorted(f"a{k}" for k in range(3000))
    report = iterator.report()
    assert {item.sample_id: item.reason for item in report.items} == reasons
    assert (report.total, len(report)) == (3300, 300)
    iterator.close()
    with pytest.raises(ValueError, match="more than max_bad_share=0.05"):
        list(stream({"mixed": mixed}, epochs=1, batch_size=8))


class Killer:
    """An image source whose reading ends the process."""

    def read(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error_that_names_its_documents():
    used = {"short": [sample(k, "what?", "x", [Killer()]) for k in range(20)]}
    iterator = iter(stream(used, workers=1, kind="process"))
    with pytest.raises(RuntimeError, match=r"worker process.*died.*'short', \d"):
        next(iterator)
    iterator.close()


def test_processes_give_what_threads_give():
    iterator = iter(stream(workers=2, kind="process"))
    assert_same(take(iterator, 3), take(iter(stream()), 3))
    iterator.close()


def test_wrong_settings_and_other_data_are_refused():
    with pytest.raises(ValueError, match="process_index"):
        StreamSettings(8, 1, process_index=2, process_count=2)
    with pytest.raises(ValueError, match="worker_kind"):
        stream(kind="fork")
    iterator = iter(stream())
    take(iterator, 3)
    with pytest.raises(ValueError, match="lengths"):
        iter(stream(sources(short=41))).set_state(iterator.get_state())
    with pytest.raises(ValueError, match="not that of a packer"):
        iter(stream(lookahead=5)).set_state(iterator.get_state())


def test_fit_takes_it():
    import keras
    from tiny_models import tiny_nanovlm

    used = stream(length=LENGTH)
    language = {"hidden_dim": 24, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
    model = tiny_nanovlm(
        language_config={**language, "max_positions": LENGTH},
        vocab_size=used.processor.vocab_size,
        image_token_id=used.processor.image_token_id,
    )
    from dl_techniques.losses.nanovlm_loss import NanoVLMLoss

    used.processor.tokens_per_image = model.tokens_per_image
    used.processor.image_processor = type(used.processor.image_processor)(16)
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=NanoVLMLoss())
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
