"""Bad samples and dead workers of a `TrainingStream`."""

import io
import json
import os
import signal
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from tiny_streams import LENGTH, answers, png, sample, stream, take

from dl_techniques.datasets.quarantine import BadSample, Quarantine
from dl_techniques.datasets.sources import open_source

pytestmark = pytest.mark.no_backend


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb():
    """Return the beginning of a PNG file that says it has 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    checked = header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + b"\0\0\0\r" + checked + b"\0\0\0\x08IDAT"


def unusual(k):
    """Return an image of an unusual kind that can be used all the same."""
    rgb = Image.open(io.BytesIO(png(k)))
    kinds = {
        "animated": lambda: encoded(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)] * 2),
        "cmyk": lambda: encoded(rgb.convert("CMYK"), "JPEG"),
        "sixteen bit": lambda: encoded(Image.fromarray(np.full((5, 4), 999, np.uint16)), "PNG"),
        "palette": lambda: encoded(rgb.convert("P"), "PNG", transparency=0),
        "grey and alpha": lambda: encoded(rgb.convert("LA"), "PNG"),
    }
    return list(kinds.values())[k % len(kinds)]()


def image_sample(image):
    return {**sample("", "what?", "no", [image]), "id": ""}


GOOD = png(0)
TURNS = {"question": "what?", "answer": "no"}
# Kind -> (a sample that cannot be used, the reason that the quarantine has).
BROKEN = {
    "truncated": (image_sample(GOOD[: len(GOOD) // 2]), "truncated image"),
    "cut in its header": (image_sample(GOOD[:20]), "unreadable image"),
    "bomb": (image_sample(bomb()), "huge image"),
    "no image": (image_sample(b"no picture at all"), "unreadable image"),
    "no bytes": (image_sample(b""), "unreadable image"),
    "no file": (image_sample("/nowhere/a.png"), "missing image"),
    "a number": (image_sample(3), "unsupported image"),
    "NaN pixels": (image_sample(np.full((4, 4, 3), np.nan)), "unsupported image"),
    "empty answer": ({"messages": sample("", "what?", " ")["messages"]}, "empty answer"),
    "no answer": ({"messages": [{"role": "user", "content": "?"}]}, "no answer"),
    "too long": ({"messages": sample("", "what?", "no" * LENGTH)["messages"]}, "too long"),
    "no dict": (7, "malformed sample"),
    "no messages": ({}, "malformed sample"),
    "messages no list": ({"messages": "hello"}, "malformed sample"),
    "wrong role": ({"messages": [{"role": "narrator", "content": "?"}]}, "malformed messages"),
    "answer no text": ({**TURNS, "answer": 3}, "malformed messages"),
    "question None": ({**TURNS, "question": None}, "malformed messages"),
}


def test_three_hundred_bad_samples_among_three_thousand_good_ones(tmp_path):
    rng = np.random.default_rng(0)
    places = rng.choice(3300, 300, replace=False).tolist()
    kinds = [list(BROKEN)[k % len(BROKEN)] for k in range(300)]
    mixed = [None] * 3300
    for place, kind in zip(places, kinds, strict=True):
        mixed[place] = BROKEN[kind][0]
    waiting = iter(range(3000))
    for place in set(range(3300)) - set(places):
        k = next(waiting)
        images = [[], [png(k % 7)], [unusual(k // 3)]][k % 3]
        mixed[place] = sample(k, "what?", f"a{k}", images)
    file = tmp_path / "deep" / "quarantine.jsonl"
    options = {"epochs": 1, "batch_size": 8}
    used = stream({"mixed": mixed}, workers=2, max_bad_share=0.1, quarantine=file, **options)
    iterator = iter(used)
    found = answers(iterator)
    assert sorted(found) == sorted(f"a{k}" for k in range(3000))
    report = iterator.report()
    assert (report.total, len(report), len(report.items)) == (3300, 300, 100)
    expected = {place: BROKEN[kind][1] for place, kind in zip(places, kinds, strict=True)}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["row"]: line["reason"] for line in lines} == expected and len(lines) == 300
    assert {(line["source"], line["sample_id"]) for line in lines} == {
        ("mixed", f"mixed/{place}") for place in places
    }
    assert report.counts == dict(Counter(expected.values()))
    assert report.by_source["mixed", "huge image"] == kinds.count("bomb")
    iterator.close()
    with pytest.raises(ValueError, match="more than max_bad_share=0.05"):
        list(stream({"mixed": mixed}, **options))


def test_a_few_bad_ones_at_the_beginning_do_not_stop_a_stream():
    mixed = [{"id": "bad"}, *(sample(k, "what?", "x" * 40) for k in range(80))]
    iterator = iter(stream({"mixed": mixed}, epochs=1))
    assert len(answers(iterator)) == 80 and len(iterator.report()) == 1
    with pytest.raises(ValueError, match="1 of 11 samples are bad"):
        list(stream({"mixed": mixed[:11]}, epochs=1))


def test_the_quarantine_names_file_and_row(tmp_path):
    rows = [{"id": f"q{k}", "image": f"{k}.png", "question": "?", "answer": "a"} for k in range(4)]
    rows[1]["answer"] = None
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for k in (0, 1, 2):
        (tmp_path / f"{k}.png").write_bytes(png(k) if k else b"")
    iterator = iter(
        stream({"set": open_source(tmp_path / "rows.jsonl")}, epochs=1, max_bad_share=1.0)
    )
    list(iterator)
    items = iterator.report().items
    found = {item.row: (item.sample_id, item.reason, item.place) for item in items}
    path = tmp_path / "rows.jsonl"
    assert found == {
        0: ("q0", "unreadable image", f"{path}, line 1"),
        1: ("set/1", "malformed sample", f"{path}, line 2"),
        3: ("q3", "missing image", f"{path}, line 4"),
    }
    assert str(tmp_path / "3.png") in items[-1].message


def test_a_resumed_quarantine_is_that_of_an_uninterrupted_run(tmp_path):
    mixed = [{"id": f"b{k}"} if k % 5 == 0 else sample(k, "?", f"a{k}") for k in range(60)]
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    resumed.write_text("of an older run\n")
    options = {"epochs": 2, "max_bad_share": 1.0, "batch_size": 1}
    list(stream({"a": mixed}, quarantine=whole, **options))
    first = iter(stream({"a": mixed}, quarantine=resumed, **options))
    take(first, 3)
    state = json.loads(json.dumps(first.get_state()))
    take(first, 4)  # These are lost.
    assert len(resumed.read_text()) > state["quarantine"]["bytes"]
    again = iter(stream({"a": mixed}, quarantine=resumed, **options))
    again.set_state(state)
    list(again)
    assert resumed.read_text() == whole.read_text() and len(whole.read_text().splitlines()) == 24


def test_a_lost_quarantine_file_is_told(tmp_path, caplog):
    quarantine = Quarantine(tmp_path / "q.jsonl")
    quarantine.record([BadSample("a", "r", "m", "s", 1)])
    state = quarantine.state()
    (tmp_path / "q.jsonl").unlink()
    again = Quarantine(tmp_path / "q.jsonl")
    again.restore(state)
    again.record([BadSample("b", "r", "\udcff", "s", 2)])
    assert "its beginning is lost" in caplog.text
    assert json.loads((tmp_path / "q.jsonl").read_text())["row"] == 2
    assert again.by_source == {("s", "r"): 2} and [i.sample_id for i in again.items] == ["a", "b"]
    with pytest.raises(OSError):
        Quarantine(tmp_path / "q.jsonl" / "below").record([])


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
