import io
import json
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from dl_techniques.datasets import (
    group_by_image,
    read_cauldron,
    read_jsonl,
    read_samples,
    split_by_image,
)
from dl_techniques.datasets.image_files import ZipMember, content_hash
from dl_techniques.preprocessing.images import ImageError, load_image

pytestmark = pytest.mark.no_backend


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_zip(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for value, name in enumerate(names):
            archive.writestr(name, png(value))
    return path


def texts(sample):
    return [message["content"] for message in sample["messages"]]


def red(source):
    return np.asarray(load_image(source))[0, 0, 0]


ROWS = [
    {"id": "q1", "image": "a.png", "question": "One?", "answer": "1", "type": "open"},
    {"image": "b.png", "question": "Two?", "answers": ["2", "two"]},
    {"id": 7, "images": ["a.png", "b.png"], "sentence": "Both are red.", "answer": "yes"},
    {"image": "a.png", "captions": ["A square.", "Red."]},
    {"question": "No image?", "answer": "none"},
    {"image": "b.png", "messages": [{"role": "user", "content": "Hi"}]},
]


@pytest.mark.parametrize("place", ["rows_images.zip", "rows_images", "images.zip", "images", ""])
def test_jsonl_forms_and_places_of_images(tmp_path, place):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    if place.endswith(".zip"):
        write_zip(tmp_path / place, ["a.png", "b.png"])
    else:
        (tmp_path / place).mkdir(exist_ok=True)
        for value, name in enumerate(["a.png", "b.png"]):
            (tmp_path / place / name).write_bytes(png(value))
    samples = read_jsonl(path)
    assert [s["id"] for s in samples] == ["q1", "rows-2", "7", "rows-4", "rows-5", "rows-6"]
    assert texts(samples[0]) == ["One?", "1"] and samples[0]["kinds"] == ["open"]
    assert texts(samples[1]) == ["Two?", "2"] and samples[1]["references"] == [["2", "two"]]
    assert texts(samples[2]) == ["Is this true? Both are red.", "yes"]
    assert texts(samples[3]) == ["Describe the picture.", "A square."]
    assert texts(samples[4]) == ["No image?", "none"] and samples[4]["images"] == []
    assert texts(samples[5]) == ["Hi"]
    assert [red(image) for image in samples[2]["images"]] == [0, 1]
    assert [red(image) for image in samples[5]["images"]] == [1]


def test_named_images_win_over_found_ones(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[:2])
    write_zip(tmp_path / "images.zip", ["a.png"])
    other = write_zip(tmp_path / "other.zip", ["b.png", "a.png"])
    assert red(read_jsonl(path, other)[0]["images"][0]) == 1
    with pytest.raises(ValueError, match=r"nowhere.*do not exist"):
        read_jsonl(path, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "JSON object"),
        ('{"image": 3, "question": "a", "answer": "b"}', "'image' must be a name"),
        ('{"image": "a.png", "answer": "b"}', "no question"),
        ('{"image": "a.png", "question": " ", "answer": "b"}', "no question"),
        ('{"image": "a.png", "question": "a"}', "'answer' must be a string"),
        ('{"image": "a.png", "question": "a", "answer": 3}', "'answer' must be a string"),
        ('{"image": "a.png", "question": "a", "answers": []}', "'answer' must be a string"),
        ('{"messages": [{"role": "user"}]}', "messages must be a list"),
    ],
)
def test_malformed_lines_are_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line 3: .*{message}"):
        read_jsonl(path)


def test_zip_members_are_lazy_picklable_and_safe_in_threads(tmp_path):
    names = [f"{k}.png" for k in range(40)]
    archive = write_zip(tmp_path / "many.zip", names)
    members = [ZipMember(str(archive), name) for name in names] * 5
    members = pickle.loads(pickle.dumps(members))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(red, members)) == list(range(40)) * 5
    with pytest.raises(ImageError, match="no.png") as caught:
        load_image(ZipMember(str(archive), "no.png"))
    assert caught.value.reason == "missing image"
    with pytest.raises(ImageError) as caught:
        load_image(ZipMember(str(tmp_path / "no.zip"), "no.png"))
    assert caught.value.reason == "missing image"


def cauldron_rows():
    return [
        {
            "images": [{"bytes": png(0), "path": None}],
            "texts": [
                {"user": "One?", "assistant": "1", "source": "made"},
                {"user": "Two?", "assistant": "2", "source": "made"},
            ],
        },
        {
            "images": [{"bytes": png(1), "path": "x.png"}, {"bytes": None, "path": "beside.png"}],
            "texts": [{"user": "Three?", "assistant": "3", "source": "made"}],
        },
    ]


def test_cauldron_parquet_folder(tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    (tmp_path / "part").mkdir()
    rows = cauldron_rows()
    parquet.write_table(arrow.Table.from_pylist(rows[:1]), tmp_path / "a.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows[1:]), tmp_path / "part" / "b.parquet")
    (tmp_path / "part" / "beside.png").write_bytes(png(9))
    for samples in (read_cauldron(tmp_path), read_samples(tmp_path)):
        assert [texts(s) for s in samples] == [["One?", "1", "Two?", "2"], ["Three?", "3"]]
        assert [[red(i) for i in s["images"]] for s in samples] == [[0], [1, 9]]
        assert [s["source"] for s in samples] == ["made", "made"]
    assert len(read_samples(tmp_path / "a.parquet")) == 1
    parquet.write_table(arrow.Table.from_pylist([{"texts": []}]), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c\.parquet.*images"):
        read_cauldron(tmp_path)


def test_cauldron_rows_and_datasets_object():
    decoded = [{**cauldron_rows()[0], "images": [Image.new("RGB", (2, 2), (5, 0, 0))]}]
    assert red(read_cauldron(decoded)[0]["images"][0]) == 5
    for broken in (
        {"images": []},
        {"images": [], "texts": []},
        {"images": [], "texts": [{"user": "a"}]},
        {"images": [], "texts": [{"user": "a", "assistant": 3}]},
        {"images": [{"bytes": None, "path": None}], "texts": [{"user": "a", "assistant": "b"}]},
    ):
        with pytest.raises(ValueError, match="row 2"):
            read_cauldron([decoded[0], broken])
    import datasets

    table = datasets.Dataset.from_list([{**cauldron_rows()[0], "images": [{"bytes": png(3)}]}])
    samples = read_cauldron(table)
    assert red(samples[0]["images"][0]) == 3 and texts(samples[0])[2:] == ["Two?", "2"]


def test_read_samples_recognises_layouts(tmp_path):
    with pytest.raises(ValueError, match="neither"):
        read_samples(tmp_path / "none")
    with pytest.raises(ValueError, match="found nothing"):
        read_samples(tmp_path)
    one = write_jsonl(tmp_path / "one.jsonl", ROWS[4:5])
    assert len(read_samples(one)) == len(read_samples(tmp_path)) == 1
    write_jsonl(tmp_path / "two.jsonl", ROWS[4:5])
    with pytest.raises(ValueError, match=r"one\.jsonl, two\.jsonl"):
        read_samples(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", ROWS[4:5] * 3)
    assert len(read_samples(tmp_path)) == 3


def row(name, image, **more):
    images = [image] if image is not None else []
    messages = [{"role": "user", "content": name}, {"role": "assistant", "content": name.upper()}]
    return {"id": name, "source": "s", "images": images, "messages": messages, **more}


def test_group_by_image_keeps_the_accepted_answers_of_every_question():
    rows = [{**row(name, png(1)), "answers": [name, name.upper()]} for name in "ab"]
    alone = {**row("c", png(2)), "answers": ["c"]}
    both, one = group_by_image([*rows, alone])
    assert both["references"] == [["a", "A"], ["b", "B"]] and "answers" not in both
    assert one["references"] == [["c"]]
    assert "references" not in group_by_image([rows[0], row("b", png(1))])[0]
    assert rows[0]["answers"] == ["a", "A"]


def test_group_by_image_joins_questions_in_order():
    samples = [
        row("a", "x.png", kinds=["k1"]),
        row("b", "y.png"),
        row("c", None),
        row("d", "./x.png", kinds=["k2"]),
        row("e", None),
        {**row("f", "x.png"), "source": "other"},
        {"id": "g", "image_path": "y.png", "question": "g", "answer": "G", "source": "s"},
    ]
    groups = group_by_image(samples)
    assert [g["question_ids"] for g in groups] == [["a", "d"], ["b", "g"], ["c"], ["e"], ["f"]]
    assert texts(groups[0]) == ["a", "A", "d", "D"] and groups[0]["kinds"] == ["k1", "k2"]
    assert texts(groups[1]) == ["b", "B", "g", "G"] and "kinds" not in groups[1]
    assert len(samples[0]["messages"]) == 2
    assert group_by_image([row("a", png(1)), row("b", png(1)), row("c", png(2))])[0]["id"] == "a"
    again = group_by_image(groups)
    assert [g["question_ids"] for g in again] == [g["question_ids"] for g in groups]


def test_split_by_image_never_shares_content(tmp_path):
    for k in range(40):  # Every content under two names.
        (tmp_path / f"{k}.png").write_bytes(png(k % 20))
    samples = [row(str(k), str(tmp_path / f"{k}.png")) for k in range(40)]
    samples += [row(f"b{k}", png(k)) for k in range(25)]
    train, dev = split_by_image(samples, 0.2, seed=1)
    seen = [{content_hash(s["images"][0]) for s in side} for side in (train, dev)]
    assert not seen[0] & seen[1] and len(seen[1]) == 5 and len(seen[0]) == 20
    assert len(train) + len(dev) == 65
    ids = {s["id"] for s in dev}
    shuffled = split_by_image(samples[::-1], 0.2, seed=1)[1]
    assert {s["id"] for s in shuffled} == ids
    assert {s["id"] for s in split_by_image(samples, 0.2, seed=2)[1]} != ids
    assert split_by_image(samples, 0.0) == (samples, [])
    with pytest.raises(ValueError, match="held_out_share"):
        split_by_image(samples, 1.0)


def test_split_by_image_keeps_chains_together():
    chain = [{**row(str(k), None), "images": [png(k), png(k + 1)]} for k in range(10)]
    others = [row(f"o{k}", png(100 + k)) for k in range(9)]
    for seed in range(5):
        for side in split_by_image(chain + others, 0.5, seed):
            assert sum(len(s["images"]) == 2 for s in side) in (0, 10)


@pytest.mark.data
def test_real_folders_are_read(data_folder):
    for name, count, first in [
        ("easy_vqa", 38575, "what is the blue shape?"),
        ("daquar", 6795, None),
        ("nlvr1", 989, None),
        ("flickr8k", 2000, "Describe the picture."),
        ("coco_yesno", 4867, None),
        ("fixtures", 60, "What animal is this?"),
    ]:
        samples = read_samples(data_folder / name)
        assert len(samples) == count
        assert first is None or samples[0]["messages"][0]["content"] == first
        assert load_image(samples[0]["images"][0]).mode == "RGB"
    assert len(group_by_image(read_samples(data_folder / "daquar"))) == 794
    assert len(read_samples(data_folder / "nlvr1")[0]["images"]) == 6


@pytest.mark.data
def test_every_fixture_image_decodes(data_folder):
    samples = read_samples(data_folder / "fixtures")
    for sample in samples:
        assert min(load_image(sample["images"][0]).size) > 20
