"""A `TrainingStream` over sources that come in their own order, and over kept images."""

import errno
import json

import datasets
import numpy as np
import pytest
from tiny_streams import answers, assert_same, brighter, png, sample, sources, stream, take

from dl_techniques.datasets import tile_cache
from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.sources import EndOfStreamError, StreamingSource
from dl_techniques.datasets.tile_cache import TileCache
from dl_techniques.preprocessing.images import ImageProcessor


class Rows:
    """An endless-looking data set of rows, that counts how it is read."""

    def __init__(self, rows):
        self.rows, self.begun, self.read = rows, 0, 0

    def __iter__(self):
        self.begun += 1
        for row in self.rows:
            self.read += 1
            yield row


def chats(count):
    return [
        {"messages": sample(k, f"why {k}?", f"because {k} " * (1 + k % 4))["messages"]}
        for k in range(count)
    ]


def streamed(rows):
    return StreamingSource(Rows(rows), "smoltalk", "chats")


def test_a_stream_by_number():
    source = streamed(chats(10))
    assert [source[k][0]["id"] for k in range(10)] == [f"chats-{k + 1}" for k in range(10)]
    assert source._dataset.begun == 1
    with pytest.raises(EndOfStreamError, match="has no row 10"):
        source[10]
    assert source[3] == list(source)[3] and source[4] == list(source)[4]
    with pytest.raises(ValueError, match="no row -1"):
        source[-1]


def test_a_stream_is_skipped_by_its_own_means():
    rows = datasets.IterableDataset.from_generator(lambda: iter(chats(10)))
    source = StreamingSource(rows, "smoltalk", "chats")
    assert [source[k][0]["id"] for k in (7, 8, 2)] == ["chats-8", "chats-9", "chats-3"]


def mixed(**options):
    used = {"short": sources()["short"], "long": streamed(chats(30))}
    return stream(used, **options)


def test_a_stream_and_a_sequence_are_mixed_in_order():
    iterator = iter(mixed(epochs=2))
    found = answers(iterator)
    long = [answer for answer in found if answer.startswith("because")]
    expected = [row["messages"][1]["content"].strip() for row in chats(30)]
    assert sorted(long) == sorted(expected * 2)
    order = [int(answer.split()[1]) for answer in long[:30]]
    assert max(abs(np.arange(30) - order)) <= 4  # But for the packer's choice.
    assert iterator.shares()["long"]["epochs"] == 2
    assert not len(iterator.report())


def test_a_stream_is_resumed_and_read_once():
    whole = take(iter(mixed()), 30)
    iterator = iter(mixed())
    for step in range(24):
        if step % 3 == 0:
            state = json.loads(json.dumps(iterator.get_state()))
            again = mixed(workers=step % 2)
            resumed = iter(again)
            resumed.set_state(state)
            rows = again.sources["long"]._dataset
            epochs = state["planner"]["draws"]["progress"]["long"]["drawn"] // 30
            assert rows.begun <= 2 if not epochs else rows.begun <= 3
            assert_same(take(resumed, 5), whole[step : step + 5])
            resumed.close()
        next(iterator)


def test_streams_need_shares_and_must_not_be_empty_or_shrink():
    with pytest.raises(ValueError, match="give the mixture shares"):
        Mixture(None).start({"a": None})
    with pytest.raises(ValueError, match="is empty"):
        take(iter(stream({"a": streamed([])})), 1)
    run = Mixture({"a": 1}, epochs=2.5).start({"a": None})
    assert [run.next() for _ in range(5)] == [("a", k, 0) for k in range(5)]
    run.end("a", 4)
    assert [run.next()[1:] for _ in range(6)] == [(0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (1, 2)]
    with pytest.raises(StopIteration):
        run.next()
    with pytest.raises(ValueError, match="ended after 3 samples, before after 4"):
        run.end("a", 3)


# --- Kept images ---


def no_decoding(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("an image was prepared again")

    monkeypatch.setattr(tile_cache, "whole_tiles", refuse)


@pytest.mark.parametrize("tiled", [False, True])
def test_kept_images_are_the_same_and_are_prepared_once(tmp_path, monkeypatch, tiled):
    expected = take(iter(stream(tiled=tiled)), 6)
    assert_same(take(iter(stream(tiled=tiled, cache=tmp_path)), 6), expected)
    no_decoding(monkeypatch)
    assert_same(take(iter(stream(tiled=tiled, cache=tmp_path)), 6), expected)
    with pytest.raises(AssertionError, match="prepared again"):
        take(iter(stream(tiled=not tiled, cache=tmp_path)), 6)


def test_kept_images_are_augmented_anew(tmp_path, monkeypatch):
    expected = take(iter(stream(augment=brighter)), 6)
    take(iter(stream(cache=tmp_path)), 6)
    no_decoding(monkeypatch)
    assert_same(take(iter(stream(augment=brighter, cache=tmp_path)), 6), expected)
    with pytest.raises(ValueError, match="tiles cannot be kept"):
        stream(augment=brighter, cache=tmp_path, tiled=True)


def test_the_key_is_the_content_and_the_settings(tmp_path):
    cache, processor = TileCache(tmp_path), ImageProcessor(4)
    (tmp_path / "a.png").write_bytes(png(1))
    names = {
        cache.path(processor, png(1)),
        cache.path(processor, tmp_path / "a.png"),
        cache.path(ImageProcessor(4), png(1)),
    }
    assert len(names) == 1
    others = {
        cache.path(processor, png(2)),
        cache.path(ImageProcessor(5), png(1)),
        cache.path(ImageProcessor(4, resample="bilinear"), png(1)),
        cache.path(ImageProcessor(4, transparency="drop"), png(1)),
    }
    assert len(others | names) == 5


def test_a_damaged_file_is_told_and_written_anew(tmp_path, caplog):
    cache, processor = TileCache(tmp_path), ImageProcessor(4)
    expected = cache(processor, png(1))
    path = cache.path(processor, png(1))
    for damaged in (path.read_bytes()[:-5], b"", b"nonsense"):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(cache(processor, png(1)), expected)
    assert caplog.text.count("is damaged") == 3
    np.testing.assert_array_equal(np.load(path), expected)


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(file, array):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="cannot be kept in .*No space left"):
        TileCache(tmp_path)(ImageProcessor(4), png(1))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
