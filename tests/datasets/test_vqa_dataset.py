import copy
import io
import logging
import pickle

import keras
import numpy as np
import pytest
from PIL import Image

from dl_techniques.datasets import generate_shapes
from dl_techniques.datasets.image_files import ZipMember
from dl_techniques.datasets.rows import RowEncoder
from dl_techniques.datasets.samples import group_by_image
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.chat_template import ChatTemplate

IMAGE_ID = 5
tensorflow_only = keras.backend.backend() == "tensorflow"


def picture(value):
    return np.full((4, 4, 3), value, np.uint8)


def sample(name, turns, images=(), system=None):
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return {"id": name, "images": list(images), "messages": messages}


def processor(length=128, **options):
    options = {"image_token_id": IMAGE_ID, "tokens_per_image": 2, "max_bad_share": 0.0} | options
    return VQADataProcessor(4, length, **options)


def text(ids):
    """Readable ids: < bos, > eos, # image placeholder, . padding."""
    special = {1: "<", 2: ">", IMAGE_ID: "#", 0: ".", -100: "_"}
    return "".join(special.get(int(i), chr(abs(int(i)))) for i in ids)


def rows_of(dataset):
    """Text of every real row, over all batches."""
    found = []
    for index in range(len(dataset)):
        inputs, _ = dataset[index]
        for ids, mask in zip(inputs["text_tokens"], inputs["attention_mask"], strict=True):
            if mask.any():
                found.append(text(ids[mask]))
    return found


def test_batch_by_hand():
    samples = [
        sample("a", [("x?", "1"), ("y?", "no")], [picture(255), picture(0)]),
        sample("b", [("z?", "2")], [picture(51)]),
        sample("c", [("t?", "3")]),
    ]
    dataset = processor().create_dataset(samples, 2, shuffle=False, bucket=8)
    assert len(dataset) == 2
    inputs, labels = dataset[0]
    first = "<####question: x? answer: 1>question: y? answer: no>"
    assert text(inputs["text_tokens"][0]).rstrip(".") == first
    assert text(labels[0]).rstrip("_") == "_" * 25 + " 1>" + "_" * 20 + " no>"
    assert label_text(first) == "_" * 25 + " 1>" + "_" * 20 + " no>"
    assert text(inputs["text_tokens"][1]).rstrip(".") == "<##question: z? answer: 2>"
    for row in range(2):
        ids = inputs["text_tokens"][row]
        learned = labels[row] != -100
        assert (labels[row][learned] == ids[learned]).all()
        assert np.array_equal(inputs["attention_mask"][row], ids != 0)
    assert inputs["text_tokens"].shape == (2, 56) and labels.shape == (2, 56)
    assert inputs["num_images"].tolist() == [2, 1]
    assert inputs["images"].shape == (2, 2, 4, 4, 3)
    np.testing.assert_allclose(inputs["images"][:, :, 0, 0, 0], [[1, -1], [-0.6, 0]], atol=1e-6)
    types = {key: value.dtype.name for key, value in inputs.items()}
    assert types == {
        "text_tokens": "int32",
        "attention_mask": "bool",
        "images": "float32",
        "num_images": "int32",
    }


def label_text(row):
    """What is learned of a row in `text` notation: answers and their ends."""
    parts = row.split("answer:")
    out = "_" * len(parts[0] + "answer:")
    for part in parts[1:]:
        answer, _, rest = part.partition(">")
        out += answer + ">" + "_" * len(rest)
        out += "_" * len("answer:") if part is not parts[-1] else ""
    return out.rstrip("_")


def test_last_batch_is_filled_with_empty_rows():
    samples = [sample(str(k), [("x", "y")], [picture(255)]) for k in range(5)]
    dataset = processor().create_dataset(samples, 4, shuffle=True)
    inputs, labels = dataset[1]
    assert inputs["text_tokens"].shape[0] == labels.shape[0] == 4
    assert (inputs["text_tokens"][1:] == 0).all() and (labels[1:] == -100).all()
    assert not inputs["attention_mask"][1:].any() and inputs["num_images"].tolist() == [1, 0, 0, 0]
    assert (inputs["images"][1:] == 0).all() and (inputs["images"][0] == 1).all()
    assert len(rows_of(dataset)) == 5
    with pytest.raises(IndexError):
        dataset[2]


def test_text_only_data_has_no_image_keys():
    dataset = processor().create_dataset([sample("a", [("x", "y")])], 2)
    assert set(dataset[0][0]) == {"text_tokens", "attention_mask"}
    mixed = [sample("a", [("x", "y")]), sample("b", [("x", "y")], [picture(9)])]
    inputs, _ = processor().create_dataset(mixed, 1, shuffle=False)[0]
    assert inputs["images"].shape == (1, 1, 4, 4, 3) and inputs["num_images"].tolist() == [0]


def test_lengths_are_bucketed_per_batch():
    samples = [sample(str(k), [("x" * n, "y")]) for k, n in enumerate([1, 30, 60])]
    dataset = processor(85).create_dataset(samples, 1, shuffle=False, bucket=32)
    # bos + "question: " + n + " answer:" + " y" + eos = n + 22
    # On TensorFlow Keras takes the shapes of all batches from the first two.
    expected = [85, 85, 85] if tensorflow_only else [32, 64, 85]
    assert [dataset[k][1].shape[1] for k in range(3)] == expected


def test_long_conversations_are_cut_between_turns_and_repeat_their_images():
    turns = [(f"q{k}", f"a{k}") for k in range(5)]
    one_turn = len("<##question: q0 answer: a0>")
    later_turn = len("question: q1 answer: a1>")
    samples = [sample("a", turns, [picture(7)])]
    dataset = processor(one_turn + later_turn).create_dataset(samples, 4, shuffle=False)
    expected = [
        "<##question: q0 answer: a0>question: q1 answer: a1>",
        "<##question: q2 answer: a2>question: q3 answer: a3>",
        "<##question: q4 answer: a4>",
    ]
    assert rows_of(dataset) == expected
    assert dataset[0][0]["num_images"].tolist() == [1, 1, 1, 0]
    by_turns = processor().create_dataset(samples, 4, shuffle=False, max_turns=2)
    assert rows_of(by_turns) == expected
    shorter = processor(one_turn + later_turn - 1).create_dataset(samples, 8, shuffle=False)
    assert len(shorter.rows) == 5


def test_images_inside_messages_and_system_turns_survive_cutting():
    messages = sample("a", [("q0", "a0"), ("q1", "a1"), ("q2", "a2")], system="be kind")["messages"]
    messages[1]["image"] = picture(0)
    messages[3] = {
        "role": "user",
        "content": [{"type": "text", "text": "see"}, {"type": "image", "image": picture(255)}],
    }
    row = {"id": "a", "messages": messages}
    whole = processor().create_dataset([row], 1, shuffle=False, shuffle_turns=True)
    # The second image belongs to its turn, so these turns keep their order.
    expected = (
        "<be kind\n##question: q0 answer: a0>question: see## answer: a1>question: q2 answer: a2>"
    )
    for _ in range(3):
        assert rows_of(whole) == [expected]
        whole.on_epoch_end()
    parts = processor().create_dataset([row], 1, shuffle=False, max_turns=1)
    assert rows_of(parts) == [
        "<be kind\n##question: q0 answer: a0>",
        "<be kind\n##question: see## answer: a1>",
        "<be kind\n####question: q2 answer: a2>",
    ]
    means = [dataset_images(parts, k) for k in range(3)]
    assert means == [[-1.0], [-1.0, 1.0], [-1.0, 1.0]]


def dataset_images(dataset, index):
    inputs, _ = dataset[index]
    return [float(inputs["images"][0, k].mean()) for k in range(inputs["num_images"][0])]


def test_shuffled_turns_are_whole_conversations_in_another_order():
    turns = [(f"q{k}", f"a{k}") for k in range(4)]
    data = [sample("a", turns, [picture(3)], system="hm")]
    length = len("<hm\n##") + 4 * len("question: q0 answer: a0>")
    dataset = processor(length).create_dataset(data, 1, shuffle_turns=True)
    seen = set()
    for _ in range(12):
        inputs, labels = dataset[0]
        (row,) = rows_of(dataset)
        assert text(labels[0]).rstrip("_") == label_text(row)
        head, *questions = row.split("question: ")
        assert head == "<hm\n##" and sorted(questions) == [f"q{k} answer: a{k}>" for k in range(4)]
        seen.add(row)
        dataset.on_epoch_end()
    assert len(seen) > 6
    # One token less, and no order fits: the row is cut in two.
    assert len(processor(length - 1).create_dataset(data, 1, shuffle_turns=True).rows) == 2


def test_epochs_differ_and_reading_changes_nothing():
    samples = list(generate_shapes("train", 23, questions_per_image=4))

    def noise(image, rng):
        return rng.integers(0, 255, image.shape, np.uint8)

    def make():
        return processor(256).create_dataset(samples, 4, seed=3, augment=noise, shuffle_turns=True)

    def snapshot(dataset, order):
        batches = {k: dataset[k] for k in order}
        return [pickle.dumps(batches[k]) for k in range(len(dataset))]

    dataset, other = make(), make()
    forward, backward = range(len(dataset)), range(len(dataset) - 1, -1, -1)
    epochs = []
    for _ in range(3):
        epochs.append(snapshot(dataset, forward))
        assert snapshot(other, backward) == epochs[-1]
        dataset.on_epoch_end()
        other.on_epoch_end()
    assert epochs[0] != epochs[1] != epochs[2]
    other.set_epoch(1)
    assert snapshot(other, forward) == epochs[1]
    images = [dataset[k][0]["images"][:, 0].tobytes() for k in range(len(dataset))]
    assert len(set(images)) == len(images)
    with pytest.raises(ValueError, match="epoch"):
        dataset.set_epoch(-1)


def test_every_epoch_has_every_row_once():
    samples = [sample(f"n{k}", [(f"q{k}", "a")]) for k in range(10)]
    dataset = processor().create_dataset(samples, 3)
    orders = []
    for _ in range(2):
        orders.append(rows_of(dataset))
        assert len(set(orders[-1])) == 10
        dataset.on_epoch_end()
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    plain = processor().create_dataset(samples, 3, shuffle=False)
    assert rows_of(plain) == [f"<question: q{k} answer: a>" for k in range(10)]


def broken_png():
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()[:1500]


def test_bad_samples_are_counted_named_and_reported(tmp_path, caplog):
    good = [sample(f"good{k}", [("x", "y")], [picture(1)]) for k in range(12)]
    bad = [
        sample("missing", [("x", "y")], [str(tmp_path / "no.png")]),
        sample("zip", [("x", "y")], [ZipMember(str(tmp_path / "no.zip"), "a")]),
        sample("cut", [("x", "y"), ("x", "z")], [picture(1), broken_png()]),
        sample("huge", [("x", "y")], [Image.new("1", (9000, 9000))]),
        sample("empty", [("x", "y"), ("x", " ")], [picture(1)]),
        sample("long", [("x", "y"), ("x" * 200, "y")], [picture(1)]),
        {"id": "unanswered", "messages": sample("", [("x", "y")])["messages"][:1]},
        {"id": "role", "messages": [{"role": "robot", "content": "x"}]},
        {"id": "keys", "question": "x"},
        {"question": "x", "answer": None},
    ]
    samples = good[:6] + bad + good[6:]
    with caplog.at_level(logging.WARNING):
        dataset = processor(max_bad_share=0.5).create_dataset(samples, 4)
    assert dataset.report.total == 22 and len(dataset.rows) == 12
    by_id = {item.sample_id: item for item in dataset.report.items}
    assert {name: item.reason for name, item in by_id.items()} == {
        "missing": "missing image",
        "zip": "missing image",
        "cut": "truncated image",
        "huge": "huge image",
        "empty": "empty answer",
        "long": "too long",
        "unanswered": "no answer",
        "role": "malformed messages",
        "keys": "malformed sample",
        "15": "malformed messages",
    }
    assert dataset.report.counts["missing image"] == 2
    assert "no.png" in by_id["missing"].message and "max_text_length=128" in by_id["long"].message
    assert "10 of 22 samples are bad" in str(dataset.report)
    assert "10 of 22 samples are bad" in caplog.text and "missing" in caplog.text
    assert len(rows_of(dataset)) == 12
    with pytest.raises(ValueError, match=r"(?s)10 of 22.*max_bad_share=0\.45.*empty: Answer 1"):
        processor(max_bad_share=0.45).create_dataset(samples, 4)
    with pytest.raises(ValueError, match="no usable sample"):
        processor(max_bad_share=1.0).create_dataset(bad, 4)
    with pytest.raises(ValueError, match="no usable sample"):
        processor().create_dataset([], 4)


@pytest.mark.parametrize("isolated", [False, True])
def test_of_questions_about_one_image_the_bad_ones_alone_are_left_out(isolated):
    cut = broken_png()
    questions = [
        sample("a", [("q", "one")], [picture(1)]),
        sample("long", [("q", "y" * 200)], [picture(1)]),
        sample("talk", [("q", "two"), ("q", "y" * 200)], [picture(1)]),
        sample("empty", [("q", " ")], [picture(1)]),
        {**sample("none", []), "images": [picture(1)], "messages": question("q")},
        sample("b", [("r", "six")], [picture(1)]),
        sample("alone", [("q", "y" * 200)], [picture(2)]),
        *(sample(name, [("q", "y")], [cut]) for name in ("cut1", "cut2")),
    ]
    used = processor(max_bad_share=1.0)
    datasets = [
        used.create_dataset(samples, 4, shuffle=False, isolate_turns=isolated)
        for samples in (questions, group_by_image(questions))
    ]
    apart, joined = datasets
    assert joined.report.total == len(questions)
    assert joined.supervised_tokens == apart.supervised_tokens
    assert {(i.sample_id, i.reason) for i in joined.report.items} == {
        (i.sample_id, i.reason) for i in apart.report.items
    }
    assert [row.count("answer") for row in rows_of(joined)] == [2]


def question(text):
    return [{"role": "user", "content": text}]


def test_without_a_cache_files_are_read_again(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), (255, 255, 255)).save(path)
    cut = tmp_path / "cut.png"
    cut.write_bytes(broken_png())
    samples = [sample("fine", [("x", "y")], [path]), sample("cut", [("x", "y")], [cut])]
    dataset = processor().create_dataset(samples, 1, shuffle=False, cache_images=False)
    assert dataset[0][0]["images"].max() == 1.0
    with pytest.raises(ValueError, match=r"Sample cut: .*cut\.png.*truncated"):
        dataset[1]
    path.unlink()
    with pytest.raises(ValueError, match=r"Sample fine: .*does not exist"):
        dataset[0]


def test_the_same_image_is_decoded_once(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    used = processor()
    calls = []
    tiles = used.image_processor.tiles
    used.image_processor.tiles = lambda source: calls.append(source) or tiles(source)
    samples = [sample(str(k), [("x", "y")], [str(path)]) for k in range(5)]
    dataset = used.create_dataset(samples, 5)
    assert dataset[0][0]["num_images"].tolist() == [1] * 5 and len(calls) == 1


def test_augment_must_keep_the_format():
    samples = [sample("a", [("x", "y")], [picture(1)])]
    for wrong in (lambda image, rng: image / 255, lambda image, rng: image[:2]):
        with pytest.raises(ValueError, match="augment must return uint8"):
            processor().create_dataset(samples, 1, augment=wrong)[0]


def test_bad_arguments():
    samples = [sample("a", [("x", "y")])]
    for options in ({"batch_size": 0}, {"bucket": 0}, {"seed": -1}, {"max_turns": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            processor().create_dataset(samples, **options)


def test_templates_whose_turns_run_together_are_refused():
    merging = ChatTemplate("merging", ("", ""), ("Q", ""), ("A", " end "), starts_with_bos=True)
    samples = [sample("a", [("x", "y"), ("x", "z")])]
    assert processor(template=merging).create_dataset(samples, 1)  # Characters never merge.

    class Merging:
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, messages, continues):
            encoded = copy.deepcopy(self.inner(messages, continues))
            if len(messages) > 2:
                encoded.token_ids[5] += 1
            return encoded

    encoder = RowEncoder(Merging(processor().encode), 128)
    with pytest.raises(ValueError, match="differ from the whole conversation"):
        encoder.rows({**samples[0], "source": ""})


def test_supervised_tokens_are_reported_per_source():
    samples = [
        {**sample("a", [("x", "one"), ("y", "2")]), "source": "s"},
        {**sample("b", [("x", "3")]), "source": "t"},
    ]
    dataset = processor().create_dataset(samples, 2)
    # A blank, the answer, eos.
    assert dataset.supervised_tokens == {"s": 5 + 3, "t": 3}


@pytest.mark.parametrize("workers", [1, 3])
def test_fit_takes_it_on_every_backend(workers):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = keras.layers.Embedding(300, 4)
            self.head = keras.layers.Dense(300)

        def call(self, inputs):
            seen = keras.ops.mean(inputs["images"], axis=(1, 2, 3, 4))
            return self.head(self.embedding(inputs["text_tokens"]) + seen[:, None, None])

    def loss(labels, logits):
        learned = keras.ops.cast(labels >= 0, "float32")
        values = keras.ops.sparse_categorical_crossentropy(
            keras.ops.maximum(labels, 0), logits, from_logits=True
        )
        return keras.ops.sum(values * learned)

    samples = [sample(str(k), [("x" * 15 * k, "y")], [picture(k)] * (1 + k % 2)) for k in range(7)]
    data = processor(128, vocab_size=300).create_dataset(samples, 2, bucket=16, workers=workers)
    model = Model()
    model.compile("sgd", loss, run_eagerly=False)
    history = model.fit(data, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert data.epoch == 3  # One more than epochs: Keras builds the model with a pass of its own.
