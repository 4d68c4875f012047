"""Documents to rows: nothing lost, nothing cut, little padding, the order nearly kept."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_techniques.datasets.packed_rows import Document, PackedRow, collate
from dl_techniques.datasets.packing import Packer
from dl_techniques.datasets.readers import read_samples
from dl_techniques.datasets.rows import Row, RowEncoder
from dl_techniques.datasets.samples import group_by_image
from dl_techniques.preprocessing.chat_template import TEMPLATES, encode_conversation
from dl_techniques.preprocessing.tokenizer import load_tokenizer

pytestmark = pytest.mark.no_backend

LENGTH, MAX_TILES = 12, 3
PAD = 99


def document(length, tiles=0, index=0, labels=None):
    """Return a document whose ids say which one it is and where each id stands."""
    ids = 1000 * index + np.arange(length, dtype=np.int32)
    images = tuple(f"image {index}-{k}" for k in range(min(tiles, 1)))
    return Document(ids, ids.copy() if labels is None else labels, images, tiles, ("made", index))


def documents(sizes):
    return [document(length, tiles, k) for k, (length, tiles) in enumerate(sizes)]


def pack(packer, stream):
    return [row for doc in stream for row in packer.add(doc)] + packer.flush()


def keys(rows):
    return [[doc.key for doc in row.documents] for row in rows]


def lengths(rows):
    return [[len(doc.ids) for doc in row.documents] for row in rows]


sizes = st.tuples(st.integers(1, 3) | st.integers(1, LENGTH), st.integers(0, MAX_TILES))
streams = st.lists(sizes, max_size=30).map(documents)
limits = st.fixed_dictionaries(
    {
        "max_tiles": st.sampled_from([None, MAX_TILES, MAX_TILES + 2]),
        "lookahead": st.integers(1, 8),
        "max_documents": st.sampled_from([None, 1, 3]),
    }
)


@given(streams, limits)
def test_every_document_once_within_the_limits_and_in_order(stream, limits):
    packer = Packer(LENGTH, **limits)
    rows = pack(packer, stream)
    assert sorted(key for row in keys(rows) for key in row) == [doc.key for doc in stream]
    for row in rows:
        assert 0 < row.tokens == sum(map(len, (doc.ids for doc in row.documents))) <= LENGTH
        assert row.tiles <= (limits["max_tiles"] or row.tiles)
        assert len(row.documents) <= (limits["max_documents"] or LENGTH)
        assert list(row.documents) == sorted(row.documents, key=lambda doc: doc.key)
    assert packer.flush() == [] and packer.state()["keys"] == []
    assert packer.emitted_rows == len(rows)
    assert packer.emitted_tokens == sum(len(doc.ids) for doc in stream)
    assert keys(pack(Packer(LENGTH, **limits), stream)) == keys(rows)


@given(streams, limits)
def test_a_row_has_the_oldest_document_and_no_set_fills_it_better(stream, limits):
    packer = Packer(LENGTH, **limits)
    pending, rows = [], iter(pack(packer, stream))
    arriving = iter(stream)
    while True:
        pending += itertools.islice(arriving, limits["lookahead"] - len(pending))
        if not pending:
            break
        oldest, *others = pending
        most = 0
        for size in range(len(others) + 1):
            for chosen in itertools.combinations(others, size):
                chosen = (oldest, *chosen)
                fits = sum(d.tiles for d in chosen) <= (limits["max_tiles"] or 99) and len(
                    chosen
                ) <= (limits["max_documents"] or 99)
                tokens = sum(len(d.ids) for d in chosen)
                most = max(most, tokens if fits and tokens <= LENGTH else 0)
        row = next(rows)
        assert row.documents[0] is oldest
        assert row.tokens == most
        pending = [doc for doc in pending if doc not in row.documents]
    assert next(rows, None) is None


@settings(max_examples=25)
@given(streams, limits)
def test_a_restored_packer_goes_on_as_if_nothing_had_happened(stream, limits):
    whole = keys(pack(Packer(LENGTH, **limits), stream))
    by_key = {doc.key: doc for doc in stream}
    packer, done = Packer(LENGTH, **limits), []
    for step in range(len(stream) + 1):
        other = Packer(LENGTH, **limits)
        other.add(document(1, index=77))  # Is gone after the restoring.
        other.restore(json.loads(json.dumps(packer.state())), by_key.__getitem__)
        assert other.state() == packer.state()
        rest = pack(other, stream[step:])
        assert done + keys(rest) == whole
        assert other.emitted_tokens == sum(len(doc.ids) for doc in stream)
        if step < len(stream):
            done += keys(packer.add(stream[step]))


def test_rows_by_hand():
    # Of 7 5 4 3, only 3 completes 7. Of 5 4 5 1, both 5 and 4 + 1 complete 5: 1, the newest, waits.
    packer = Packer(10, lookahead=4)
    stream = documents([(7, 0), (5, 0), (4, 0), (3, 0), (5, 0), (1, 0), (4, 0)])
    steps = [lengths(packer.add(doc)) for doc in stream]
    assert steps == [[], [], [], [[7, 3]], [], [[5, 5]], []]
    assert lengths(packer.flush()) == [[4, 1, 4]]
    assert packer.utilisation == pytest.approx(29 / 30)


def test_of_equally_good_sets_the_older_documents_go_first():
    packer = Packer(10, lookahead=5)
    rows = pack(packer, documents([(6, 0), (4, 0), (2, 0), (2, 0), (4, 0)]))
    assert keys(rows)[0] == [("made", 0), ("made", 1)]


def test_tiles_and_documents_are_limits_of_their_own():
    sizes = [(4, 2), (4, 2), (4, 1), (2, 0), (2, 0)]
    assert lengths(pack(Packer(12), documents(sizes))) == [[4, 4, 4], [2, 2]]
    assert keys(pack(Packer(12, max_tiles=3), documents(sizes))) == [
        [("made", 0), ("made", 2), ("made", 3), ("made", 4)],
        [("made", 1)],
    ]
    assert lengths(pack(Packer(12, max_documents=2), documents(sizes))) == [[4, 4], [4, 2], [2]]
    # Each limit alone allows a full row: 6 + six of 1, or 6 + 6.
    sizes = [(6, 3), (6, 1), *[(1, 0)] * 6]
    both = Packer(12, max_tiles=3, max_documents=3)
    assert lengths(pack(both, documents(sizes))) == [[6, 1, 1], [6, 1, 1], [1, 1]]


def test_what_no_row_can_hold_is_refused_by_name():
    packer = Packer(8, max_tiles=2)
    packer.add(document(3, index=1))
    with pytest.raises(ValueError, match=r"\('made', 5\) has 9 tokens, more than .*length=8"):
        packer.add(document(9, index=5))
    with pytest.raises(ValueError, match=r"\('made', 6\) has 3 tiles, more than max_tiles=2"):
        packer.add(document(8, tiles=3, index=6))
    assert keys(packer.flush()) == [[("made", 1)]]
    for name in ("length", "max_tiles", "lookahead", "max_documents"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            Packer(**{"length": 8, name: 0})


def test_a_state_of_something_else_is_refused_and_changes_nothing():
    packer = Packer(8)
    packer.add(document(3, index=1))
    before = packer.state()
    foreign = Packer(9)
    with pytest.raises(ValueError, match="'length': 8.*it has .*'length': 9"):
        packer.restore(foreign.state(), None)
    with pytest.raises(ValueError, match="not that of a packer"):
        packer.restore({"rows": []}, None)
    changed = {("made", 1): document(4, index=1)}
    with pytest.raises(ValueError, match=r"\('made', 1\) had 3 tokens .* with 4"):
        packer.restore(before, changed.__getitem__)
    with pytest.raises(ValueError, match=r"\('made', 1\) had 3 tokens .* \('made', 2\)"):
        packer.restore(before, lambda key: document(3, index=2))
    assert packer.state() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": [1, 2]}, "ids must be int32"),
        ({"ids": np.arange(2)}, r"ids must be int32\[n\], got int64\[2\]"),
        ({"labels": np.zeros((1, 2), np.int32)}, r"labels must be int32\[n\], got int32\[1, 2\]"),
        ({"labels": np.zeros(3, np.int32)}, "as many ids as labels and at least one, got 2 and 3"),
        ({"ids": np.zeros(0, np.int32), "labels": np.zeros(0, np.int32)}, "at least one"),
        ({"images": ("a", "b")}, "2 images cannot become 1 tiles"),
        ({"images": ()}, "0 images cannot become 1 tiles"),
        ({"key": ["a", 1]}, "key must be a tuple of strings and integers"),
        ({"key": ("a", np.int64(1))}, "key must be a tuple of strings and integers"),
    ],
)
def test_malformed_documents_are_refused(change, message):
    good = document(2, tiles=1)
    fields = {name: getattr(good, name) for name in ("ids", "labels", "images", "tiles", "key")}
    with pytest.raises(ValueError, match=message):
        Document(**{**fields, **change})


def test_a_document_of_a_row():
    ids = np.array([5, 6, 7, 8], np.int32)
    labels = np.array([5, -100, 7, 8], np.int32)
    row = Row("sample", "source", ["image"], [(ids, labels)], [])
    made = Document.from_row(row, 2, ("source", 3, 0))
    assert made.images == ("image",) and made.tiles == 2 and made.key == ("source", 3, 0)
    np.testing.assert_array_equal([made.ids, made.labels], [ids, labels])
    assert made.supervised == 2  # Nothing comes before the first one.
    row.turn_ids = np.zeros(4, np.int32)
    with pytest.raises(ValueError, match=r"\('source', 3, 0\): rows of isolated turns"):
        Document.from_row(row, 2, ("source", 3, 0))


def test_arrays_of_a_row_by_hand():
    first = document(3, tiles=2, index=1, labels=np.array([1000, -100, 1002], np.int32))
    second = document(2, index=2)
    row = PackedRow((first, second, document(1, tiles=1, index=3)), 8)
    arrays = row.arrays(PAD)
    expected = {
        "text_tokens": [1000, 1001, 1002, 2000, 2001, 3000, PAD, PAD],
        "labels": [-100, -100, 1002, -100, 2001, -100, -100, -100],
        "segment_ids": [1, 1, 1, 2, 2, 3, 0, 0],
        "positions": [0, 1, 2, 0, 1, 0, 0, 0],
    }
    assert arrays.keys() == expected.keys()
    for name, values in expected.items():
        assert arrays[name].dtype == np.int32
        np.testing.assert_array_equal(arrays[name], values)
    assert row.images == ["image 1-0", "image 3-0"]
    assert row.tiles == 3 and row.tokens == 6


def test_a_batch_is_filled_with_empty_rows():
    rows = [PackedRow((document(3, tiles=2, index=1),), 4), PackedRow((document(4, index=2),), 4)]
    inputs, labels = collate(rows, PAD, batch_size=3)
    assert {name: (x.shape, x.dtype.name) for name, x in inputs.items()} == {
        "text_tokens": ((3, 4), "int32"),
        "segment_ids": ((3, 4), "int32"),
        "positions": ((3, 4), "int32"),
        "attention_mask": ((3, 4), "bool"),
        "num_images": ((3,), "int32"),
    }
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(inputs["num_images"], [2, 0, 0])
    np.testing.assert_array_equal(inputs["attention_mask"].sum(axis=1), [3, 4, 0])
    np.testing.assert_array_equal(inputs["text_tokens"][2], [PAD] * 4)
    np.testing.assert_array_equal(labels[2], [-100] * 4)
    assert len(collate(rows, PAD)[1]) == 2
    with pytest.raises(ValueError, match="2 rows do not fit into a batch of 1"):
        collate(rows, PAD, batch_size=1)
    with pytest.raises(ValueError, match=r"rows of one length, got the lengths \[4, 5\]"):
        collate([rows[0], PackedRow((), 5)], PAD)
    with pytest.raises(ValueError, match=r"got the lengths \[\]"):
        collate([], PAD)


def packed_lengths(sizes, **limits):
    """Return utilisation, and indices of the documents in the order in which they come out."""
    packer = Packer(1024, **limits)
    blank = np.zeros(1024, np.int32)
    stream = (
        Document(blank[:n], blank[:n], ("",) * tiles, int(tiles), (k,))
        for k, (n, tiles) in enumerate(sizes)
    )
    rows = pack(packer, stream)
    return packer.utilisation, np.array([doc.key[0] for row in rows for doc in row.documents])


def rank_correlation(x):
    """Return Spearman's correlation of x with its place; the earlier of equals is less."""
    return np.corrcoef(np.argsort(np.argsort(x, kind="stable")), np.arange(len(x)))[0, 1]


def check_order(sizes, order):
    """Check that documents come out about where they went in, whatever their length."""
    assert np.abs(np.arange(len(order)) - order).max() <= 64 * 8
    before, after = np.array(sizes), np.array(sizes)[order]
    assert abs(rank_correlation(after) - rank_correlation(before)) < 0.05
    for part, same_part in zip(np.array_split(before, 10), np.array_split(after, 10), strict=True):
        assert abs(part.mean() - same_part.mean()) < 0.1 * before.mean()


SYNTHETIC = {
    "uniform": (lambda rng: rng.uniform(50, 700, 4000), 0.97),
    # Every second document needs a row of its own, and what fills it, at the right time.
    "uniform up to a row": (lambda rng: rng.uniform(1, 1024, 4000), 0.93),
    "log-normal": (lambda rng: rng.lognormal(5, 0.9, 4000), 0.99),
    "bimodal": (
        lambda rng: np.where(rng.random(4000) < 0.9, 80, 700) + rng.normal(0, 20, 4000),
        0.99,
    ),
}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_little_padding_and_the_order_of_the_stream(name):
    draw, expected = SYNTHETIC[name]
    sizes = np.clip(draw(np.random.default_rng(0)), 1, 1024).astype(int)
    utilisation, order = packed_lengths([(n, 0) for n in sizes])
    assert utilisation > expected
    check_order(sizes, order)


SOURCES = ("easy_vqa", "daquar", "coco_yesno", "chartqa_subset", "flickr8k")


@pytest.fixture(scope="module")
def real_sizes(data_folder):
    """Tokens and images of the rows of real conversations and texts, shuffled, per source."""
    tokenizer = load_tokenizer(data_folder / "tokenizers" / "smollm2")

    def encode(messages, continues):
        return encode_conversation(
            messages,
            tokenizer,
            TEMPLATES["chatml"],
            image_token_id=tokenizer.vocab_size - 1,
            tokens_per_image=64,
            image_layout=lambda image, number, count: (0,),
            continues=continues,
        )

    sizes = {}
    for name in SOURCES:
        samples = group_by_image(read_samples(data_folder / name)[:10000])
        rows = [row for sample in samples for row in RowEncoder(encode, 1024).rows(sample)]
        sizes[name] = [(len(row.tokens()[0]), len(row.images)) for row in rows]
    text = (data_folder / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    speeches = [tokenizer.encode(speech) for speech in text.split("\n\n") if speech]
    sizes["text"] = [(len(ids), 0) for ids in speeches]
    sizes["mixture"] = [pair for source in sizes.values() for pair in source]
    shuffle = np.random.default_rng(0).permutation
    return {name: [pairs[k] for k in shuffle(len(pairs))] for name, pairs in sizes.items()}


@pytest.mark.data
@pytest.mark.parametrize("name", [*SOURCES, "text", "mixture"])
def test_real_conversations_fill_their_rows(real_sizes, name):
    utilisation, order = packed_lengths(real_sizes[name])
    assert utilisation >= 0.97
    assert np.abs(np.arange(len(order)) - order).max() <= 64 * 8


@pytest.mark.data
@pytest.mark.parametrize("max_tiles", [None, 8])
def test_a_real_mixture_keeps_its_order(real_sizes, max_tiles):
    utilisation, order = packed_lengths(real_sizes["mixture"], max_tiles=max_tiles)
    assert utilisation >= 0.99
    check_order([n for n, _ in real_sizes["mixture"]], order)
