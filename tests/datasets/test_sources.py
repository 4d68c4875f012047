import csv
import io
import json
import pickle
import tarfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from dl_techniques.datasets import json_rows, parquet_rows, read_cauldron, read_jsonl
from dl_techniques.datasets.hub_rows import PREFIX
from dl_techniques.datasets.json_rows import index_json
from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.sources import Source, StreamingSource, open_source
from dl_techniques.preprocessing.images import load_image

pytestmark = pytest.mark.no_backend


def png(value=0):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def red(image):
    return load_image(image).getpixel((0, 0))[0]


def answer(samples):
    (one,) = samples
    return one["messages"][-1]["content"]


def question_row(number):
    return {"image": f"{number}.png", "question": f"Which? Ünï {number}", "answer": str(number)}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path, value, **how):
    path.write_text(json.dumps(value, **how), encoding="utf-8")
    return path


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def check_access(source, count):
    """Any order, from the end, pickled, in threads: the rows are the same."""
    assert len(source) == count
    expected = [source[k] for k in range(count)]
    assert list(source) == expected
    assert [source[k - count] for k in range(count)] == expected
    copy = pickle.loads(pickle.dumps(source))
    order = list(np.random.default_rng(0).permutation(count)) * 3
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(copy.__getitem__, order)) == [expected[k] for k in order]
    for index in (count, -count - 1):
        with pytest.raises(IndexError, match=f"of {count} rows"):
            source[index]
    with pytest.raises(TypeError):
        source["0"]


# --- Text files ---


@pytest.mark.parametrize("place", ["rows_images.zip", "images", ""])
def test_jsonl(tmp_path, place):
    path = write_jsonl(tmp_path / "rows.jsonl", [question_row(k) for k in range(5)])
    path.write_text("\n" + path.read_text("utf-8").replace("\n", "\r\n \n"), "utf-8", newline="")
    if place.endswith(".zip"):
        with zipfile.ZipFile(tmp_path / place, "w") as archive:
            for k in range(5):
                archive.writestr(f"{k}.png", png(k))
    else:
        (tmp_path / place).mkdir(exist_ok=True)
        for k in range(5):
            (tmp_path / place / f"{k}.png").write_bytes(png(k))
    source = open_source(path)
    check_access(source, 5)
    assert source.schema == "jsonl" and source[3][0]["messages"][0]["content"] == "Which? Ünï 3"
    assert [red(source[k][0]["images"][0]) for k in range(5)] == [0, 1, 2, 3, 4]
    # The same as reading all at once, but for the name of the source.
    assert [{**s, "source": ""} for [s] in source] == [
        {**s, "source": ""} for s in read_jsonl(path)
    ]
    assert source[0][0]["source"] == "rows" and source[0][0]["id"] == "rows-2"


def test_bad_lines_are_named_and_the_rest_is_read(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [question_row(0), {"id": "q", "answer": "b"}])
    with path.open("a") as file:
        file.write('\n{"question"\n' + json.dumps(question_row(3)))
    source = open_source(path)
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: row 'q': no question"):
        source[1]
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 4: not JSON"):
        source[2]
    assert [answer(source[k]) for k in (0, 3)] == ["0", "3"]
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: expected a JSON object"):
        open_source(path)
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="has no rows"):
        open_source(path)


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_tables(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    questions = ['Is "it", or\nnot?', "Ünï?", "Last\t?"]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file, delimiter="\t" if ending == "tsv" else ",")
        table.writerow(["id", "image", "question", "answer", "answers"])
        for k, question in enumerate(questions):
            table.writerow([f"q{k}", "a.png", question, str(k), '["x", "y"]' if k == 1 else ""])
        file.write("\n")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("train/a.png", png(7))
    source = open_source(path, images=tmp_path / "photos.zip" / "train")
    check_access(source, 3)
    assert [s["messages"][0]["content"] for [s] in source] == questions
    assert [answer(samples) for samples in source] == ["0", "x", "2"]
    assert [s["id"] for [s] in source] == ["q0", "q1", "q2"]
    assert red(source[2][0]["images"][0]) == 7
    with path.open("a") as file:
        file.write("q9\n")
    with pytest.raises(ValueError, match=rf"rows\.{ending}, row 4: 1 cells for the columns"):
        open_source(path)[3]
    path.write_bytes(b"question,answer\n\xff,1\n")
    with pytest.raises(ValueError, match=rf"rows\.{ending}, line 2: .*utf-8"):
        open_source(path)


def test_text_files_are_documents(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "a.txt").write_text("One.\n\nTwo.")
    (tmp_path / "part" / "b.txt").write_text("Drei: ü", encoding="utf-8")
    source = open_source(tmp_path)
    check_access(source, 2)
    expected = [("a", "One.\n\nTwo."), ("b", "Drei: ü")]
    assert [(s["id"], s["text"]) for [s] in source] == expected
    assert source[0][0]["messages"] == source[0][0]["images"] == []
    (tmp_path / "a.txt").write_text(" ")
    with pytest.raises(ValueError, match=r"a\.txt, passage 1: row 'a': 'text' must be text"):
        source[0]


# --- JSON ---


def llava_rows(count):
    return [
        {
            "id": f"l{k}",
            "image": f"{k}.png",
            "conversations": [
                {"from": "human", "value": '<image>\nÜ "quoted" \\ ] } , [ { ?'},
                {"from": "gpt", "value": str(k)},
            ],
        }
        for k in range(count)
    ]


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("how", [{}, {"indent": 2}, {"ensure_ascii": False}])
def test_json_arrays_of_any_form(tmp_path, monkeypatch, chunk, how):
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    rows = llava_rows(6)
    source = open_source(write_json(tmp_path / "rows.json", rows, **how))
    check_access(source, 6)
    assert source.schema == "llava" and [answer(s) for s in source] == list("012345")
    assert source[5][0]["messages"][0]["content"] == '<|image|>\nÜ "quoted" \\ ] } , [ { ?'
    assert source[5][0]["images"] == [str(tmp_path / "5.png")]
    nested = {"version": 1.5, "note": "ü", "empty": [], "data": rows, "after": {"a": [1]}}
    path = write_json(tmp_path / "nested.json", nested, **how)
    assert [answer(s) for s in open_source(path)] == list("012345")
    header, arrays = index_json(path)
    assert header == {"version": 1.5, "note": "ü", "after": {"a": [1]}}
    assert {key: len(found.starts) for key, found in arrays.items()} == {"empty": 0, "data": 6}
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(open_source(path)) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a" 2}, {"a": 3}]' + " " * 50, "byte 16: expected JSON"),
        ('[{"a": 1} {"a": 2}]', "byte 10: expected ','"),
        ('[{"a": 1}, {"a": "x', "expected JSON"),
        ('[{"a": 1}', "expected ','"),
        ('{"data": [{"a": 1}]} x', "expected the end of the file"),
        ("", "expected '{', found ''"),
        ("{}", "must hold one array"),
        ('{"a": [{"b": 1}], "c": [{"d": 1}]}', r"holds the arrays \['a', 'c'\]"),
        ("[1, 2]", "row 1: expected a JSON object, got int"),
        ("[]", "must hold one array"),
    ],
)
def test_broken_json_is_named(tmp_path, text, message):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"rows\.json.*{message}"):
        open_source(path)


def vqa_files(folder):
    questions = [
        {"image_id": 9 + k, "question": f"Q{k}?", "question_id": 100 + k} for k in range(4)
    ]
    annotations = [
        {
            "question_type": "what",
            "multiple_choice_answer": f"a{q['question_id']}",
            "answers": [
                {"answer": f"a{q['question_id']}", "answer_confidence": "yes", "answer_id": k}
                for k in range(1, 11)
            ],
            "image_id": q["image_id"],
            "answer_type": "other",
            "question_id": q["question_id"],
        }
        for q in reversed(questions)
    ]
    common = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": "train2014"}
    path = write_json(
        folder / "v2_OpenEnded_mscoco_train2014_questions.json",
        {**common, "task_type": "Open-Ended", "license": {}, "questions": questions},
    )
    answers = write_json(
        folder / "v2_mscoco_train2014_annotations.json", {**common, "annotations": annotations}
    )
    return path, answers


def test_official_vqa_files_are_joined_by_question(tmp_path):
    path, answers = vqa_files(tmp_path)
    with zipfile.ZipFile(tmp_path / "train2014.zip", "w") as archive:
        archive.writestr("train2014/COCO_train2014_000000000010.jpg", png(8))
    source = open_source(path, images=tmp_path / "train2014.zip" / "train2014")
    check_access(source, 4)
    assert source.schema == "vqav2"
    assert [(s["id"], answer([s])) for [s] in source] == [
        (f"{k}", f"a{k}") for k in range(100, 104)
    ]
    assert source[1][0]["answers"] == ["a101"] * 10 and red(source[1][0]["images"][0]) == 8
    moved = answers.rename(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match=r"annotations\.json' with their answers does not exist"):
        open_source(path)
    assert len(open_source(path, schema="okvqa", annotations=moved)) == 4
    data = json.loads(moved.read_text())
    write_json(moved, {"annotations": data["annotations"][2:]})
    with pytest.raises(ValueError, match=r"2 of 4 questions in .* first one is question 102"):
        open_source(path, annotations=moved)


def test_official_captions_are_one_row_per_image(tmp_path):
    images = [{"id": k, "file_name": f"{k}.jpg", "height": 1, "width": 1} for k in (5, 3, 8)]
    captions = [(3, "c"), (5, "a"), (3, "d"), (5, "b")]
    annotations = [{"image_id": i, "id": n, "caption": c} for n, (i, c) in enumerate(captions)]
    value = {"info": {}, "images": images, "licenses": [{"id": 1}], "annotations": annotations}
    source = open_source(write_json(tmp_path / "captions.json", value))
    assert source.schema == "coco_captions" and len(source) == 3
    told = [(s["id"], answer([s]), s["answers"]) for k in (0, 1) for s in source[k]]
    a, c = ["a", "b"], ["c", "d"]
    assert told == [("5-0", "a", a), ("5-1", "b", a), ("3-0", "c", c), ("3-1", "d", c)]
    assert source[1][1]["images"] == [str(tmp_path / "3.jpg")]
    with pytest.raises(ValueError, match=r"captions\.json, row 3: row '8': 'annotations'"):
        source[2]


def test_passages_of_a_text_end_behind_lines(tmp_path):
    paragraph = "".join(f"{k:03d} {'x' * 95}\n" for k in range(12))  # 1,200 bytes.
    long = "".join(f"{k:03d} {'y' * 95}\n" for k in range(95))
    text = f"{paragraph}\n{paragraph}\n{paragraph}\n{long}{paragraph}end"
    (tmp_path / "book.txt").write_text("\ufeff" + text, encoding="utf-8")
    source = open_source(tmp_path)
    texts = [one["text"] for (one,) in source]
    both = f"{paragraph}\n{paragraph}"
    ninth = paragraph + "\n" + long[: 100 * 68]
    assert texts == [both.strip(), ninth.strip(), long[100 * 68 :] + paragraph + "end"]
    assert [one["id"] for (one,) in source] == ["book-1", "book-2", "book-3"]
    (tmp_path / "book.txt").write_text("\n" * 3)
    with pytest.raises(ValueError, match=r"book\.txt, passage 1: row 'book': 'text' must be text"):
        open_source(tmp_path)[0]
    (tmp_path / "book.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="passage 1: not UTF-8"):
        open_source(tmp_path)[0]


# --- Parquet and tar ---


def cauldron_row(k):
    return {
        "images": [{"bytes": png(k), "path": None}],
        "texts": [{"user": f"{k}?", "assistant": str(k), "source": "made"}],
    }


def count_reads(monkeypatch, kept_bytes=10**6):
    """Return a list that gets the numbers of the row groups that are read from now on."""
    reads, read = [], parquet.ParquetFile.read_row_group
    monkeypatch.setattr(parquet_rows, "_groups", parquet_rows._RowGroups(kept_bytes))
    monkeypatch.setattr(
        parquet.ParquetFile,
        "read_row_group",
        lambda self, group: (reads.append(group), read(self, group))[1],
    )
    return reads


def test_a_mixture_reads_each_row_group_once_an_epoch(tmp_path, monkeypatch):
    rows = [{"text": f"{k} " * 50} for k in range(500)]
    for shard in range(2):
        part = arrow.Table.from_pylist(rows[250 * shard : 250 * (shard + 1)])
        parquet.write_table(part, tmp_path / f"{shard}.parquet", row_group_size=20)
    group_bytes = part.slice(0, 20).nbytes
    reads = count_reads(monkeypatch, kept_bytes=6 * group_bytes)
    source = open_source(tmp_path)
    run = Mixture({"a": 1}).start({"a": 500}, {"a": source.blocks})
    texts = []
    for _ in range(500):
        texts.append(source[run.next()[1]][0]["text"])
        run.count("a", 1)
    assert sorted(texts) == sorted(row["text"] for row in rows)
    assert len(reads) == 26
    numbers = [int(text.split()[0]) for text in texts[:30]]
    groups = [*range(20, 250, 20), *range(250, 501, 20)]
    assert len(set(np.searchsorted(groups, numbers, side="right"))) == 4  # They are mixed.
    assert open_source(tmp_path / "0.parquet").blocks.digest != source.blocks.digest


def test_row_groups_are_kept_up_to_a_size(tmp_path, monkeypatch):
    table = arrow.Table.from_pylist([{"text": str(k)} for k in range(6)])
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    reads = count_reads(monkeypatch, kept_bytes=2 * table.slice(0, 1).nbytes)
    rows = parquet_rows.ParquetRows(tmp_path / "a.parquet")
    for k in (0, 1, 0, 2, 0, 1):
        assert rows[k] == {"text": str(k)}
    assert reads == [0, 1, 2, 1]


def test_parquet_shards_are_read_by_row_group(tmp_path, monkeypatch):
    (tmp_path / "ai2d").mkdir()
    for shard in range(2):
        table = arrow.Table.from_pylist([cauldron_row(5 * shard + k) for k in range(5)])
        name = f"train-0000{shard}-of-00002.parquet"
        parquet.write_table(table, tmp_path / "ai2d" / name, row_group_size=2)
    table = arrow.Table.from_pylist([cauldron_row(99)])
    parquet.write_table(table, tmp_path / "ai2d" / "test-00000-of-00001.parquet")
    reads = count_reads(monkeypatch)
    source = open_source(tmp_path)
    assert not reads  # Opening reads no rows.
    assert answer(source[9]) == "9" and answer(source[9]) == "9"
    assert len(reads) == 1
    check_access(source, 10)
    assert [red(s["images"][0]) for [s] in source] == list(range(10))
    assert source[7][0]["id"] == "train-00001-of-00002-3" and source[7][0]["source"] == "made"
    assert [answer(s) for s in open_source(tmp_path, split="test")] == ["99"]
    with pytest.raises(ValueError, match=r"splits \['test', 'train'\], asked for is 'dev'"):
        open_source(tmp_path, split="dev")
    shards = sorted((tmp_path / "ai2d").glob("train*"))
    assert [s for [s] in source] == [s for file in shards for s in read_cauldron(file)]
    other = arrow.Table.from_pylist([{"text": "a"}])
    parquet.write_table(other, tmp_path / "ai2d" / "train-00002.parquet")
    with pytest.raises(ValueError, match=r"the_cauldron \(.*00000.*plain_text \(.*00002"):
        open_source(tmp_path)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"bad\.parquet is no parquet file"):
        open_source(tmp_path / "bad.parquet")


def test_options_reach_the_schema(tmp_path):
    rows = [{**cauldron_row(k), "relevance_ratings": [k], "source": "s"} for k in range(1, 6)]
    path = tmp_path / "fine.parquet"
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    source = pickle.loads(pickle.dumps(open_source(path, min_relevance=4)))
    assert source.schema == "finevision"
    assert [len(samples) for samples in source] == [0, 0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"Unknown options \['min_love'\]"):
        open_source(path, min_love=4)
    with pytest.raises(ValueError, match="Unknown schema 'fine'"):
        open_source(path, schema="fine")
    for wrong in ({"config": "a"}, {"streaming": True}, {"annotations": "a.json"}):
        with pytest.raises(ValueError, match="belong"):
            open_source(path, **wrong)
    with pytest.raises(ValueError, match=r"nowhere.*do not exist"):
        open_source(path, images=tmp_path / "nowhere")
    parquet.write_table(arrow.Table.from_pylist([{"URL": "a", "TEXT": "b"}]), path)
    with pytest.raises(ValueError, match=r"\['TEXT', 'URL'\] fit no known layout"):
        open_source(path)


def test_webdataset_shards(tmp_path):
    long = "folder/" + "x" * 150
    write_tar(
        tmp_path / "00000.tar",
        [
            ("0.jpg", png(1)),
            ("0.txt", "A bärn".encode()),
            ("0.json", b'{"width": 4}'),
            (f"{long}.jpg", png(2)),
            (f"{long}.txt", b"A cow"),
        ],
    )
    write_tar(tmp_path / "00001.tar", [("9.txt", b"Late"), ("9.JPG", png(3)), ("bad.txt", b"?")])
    # What a downloader leaves beside its shards.
    table = arrow.Table.from_pylist([{"URL": "a", "TEXT": "b"}])
    parquet.write_table(table, tmp_path / "00000.parquet")
    source = open_source(tmp_path)
    with pytest.raises(ValueError, match=r"00001\.tar, row 2: row 'bad': no image"):
        source[3]
    assert [answer(source[k]) for k in range(3)] == ["A bärn", "A cow", "Late"]
    assert [red(source[k][0]["images"][0]) for k in range(3)] == [1, 2, 3]
    assert [source[k][0]["id"] for k in range(3)] == ["0", long, "9"]
    check_access(open_source(tmp_path / "00000.tar"), 2)
    write_tar(tmp_path / "twice.tar", [("0.jpg", png(1)), ("0.jpg", png(2))])
    with pytest.raises(ValueError, match="record '0' has two files '.jpg'"):
        open_source(tmp_path / "twice.tar")
    with tarfile.open(tmp_path / "small.tar", "w:gz") as archive:
        archive.add(tmp_path / "00000.tar")
    with pytest.raises(ValueError, match=r"small\.tar is no plain tar file"):
        open_source(tmp_path / "small.tar")


# --- Folders ---


def test_folders(tmp_path):
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        open_source(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no data set.*found none"):
        open_source(tmp_path)
    write_jsonl(tmp_path / "qa.jsonl", [question_row(0)])
    (tmp_path / "answers.txt").write_text("a\nb")
    assert answer(open_source(tmp_path)[0]) == "0"
    write_jsonl(tmp_path / "more.jsonl", [question_row(1)])
    with pytest.raises(ValueError, match=r"several files; name one: more\.jsonl, qa\.jsonl"):
        open_source(tmp_path)
    for split, number in (("train", 2), ("dev", 3)):
        write_jsonl(tmp_path / f"{split}.jsonl", [question_row(number)])
        assert answer(open_source(tmp_path, split=split)[0]) == str(number)
    with pytest.raises(ValueError, match=r"splits \['dev', 'train'\], asked for is 'test'"):
        open_source(tmp_path, split="test")
    (tmp_path / "image.png").write_bytes(png())
    with pytest.raises(ValueError, match="has none of the endings"):
        open_source(tmp_path / "image.png")


def test_a_folder_of_data_sets_is_not_read_as_the_texts_among_them(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "train.jsonl", [question_row(0)])
        (tmp_path / name / "answers.txt").write_text("a\nb")
    with pytest.raises(ValueError, match=r"rows in folders of its own; name one: one, two\."):
        open_source(tmp_path)


def test_split_shards_of_text(tmp_path):
    for k in range(3):
        write_jsonl(tmp_path / f"train-{k}.jsonl", [question_row(k)])
    write_jsonl(tmp_path / "test-0.jsonl", [question_row(9)])
    source = open_source(tmp_path)
    assert [answer(s) for s in source] == ["0", "1", "2"]
    assert [s["id"] for [s] in source] == ["train-0-1", "train-1-1", "train-2-1"]


# --- The hub ---


@pytest.fixture
def hub(monkeypatch):
    calls = []

    def load_dataset(path, **options):
        calls.append((path, options))
        features = datasets.Features(
            {"image": datasets.Image(), "question": datasets.Value("string"),
             "answers": datasets.List(datasets.Value("string")),
             "more": datasets.List(datasets.Image()),
             "ucsf_document_id": datasets.Value("string"), "questionId": datasets.Value("string")}
        )  # fmt: skip
        rows = [
            {
                "image": {"bytes": png(k), "path": None},
                "question": "Which?",
                "answers": [str(k)] if k != 1 else None,
                "more": [{"bytes": png(k), "path": None}],
                "ucsf_document_id": "x",
                "questionId": f"d{k}",
            }
            for k in range(3)
        ]
        table = datasets.Dataset.from_list(rows, features=features)
        return table.to_iterable_dataset() if options["streaming"] else table

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_hub_datasets_by_number(hub):
    source = open_source(PREFIX + "lmms-lab/DocVQA", split="validation", config="DocVQA")
    assert hub == [
        ("lmms-lab/DocVQA", {"name": "DocVQA", "split": "validation", "streaming": False})
    ]
    assert isinstance(source, Source) and source.schema == "docvqa" and len(source) == 3
    assert [(source[k][0]["id"], answer(source[k])) for k in (0, 2)] == [("d0", "0"), ("d2", "2")]
    assert source[2][0]["images"] == [png(2)]  # Not decoded.
    with pytest.raises(ValueError, match=r"hf://lmms-lab/DocVQA, row 2: row 'd1': no answers"):
        source[1]
    assert answer(pickle.loads(pickle.dumps(source))[2]) == "2"
    assert source._rows[0]["more"] == [{"bytes": png(0), "path": None}]
    with pytest.raises(ValueError, match="annotations belong"):
        open_source(PREFIX + "a/b", annotations="x.json")


def test_hub_datasets_as_streams(hub):
    source = open_source(PREFIX + "lmms-lab/DocVQA", revision="main", streaming=True)
    assert hub[0][1] == {"revision": "main", "split": "train", "streaming": True}
    assert isinstance(source, StreamingSource) and not hasattr(source, "__len__")
    for _ in range(2):  # Every iteration begins anew.
        rows = iter(pickle.loads(pickle.dumps(source)))
        assert next(rows)[0]["images"] == [png(0)]
        with pytest.raises(ValueError, match="DocVQA, row 2: row 'd1': no answers"):
            next(rows)
        assert answer(next(rows)) == "2"
        with pytest.raises(StopIteration):
            next(rows)


def test_a_stream_with_unknown_columns_looks_at_its_first_row(monkeypatch, tmp_path):
    rows = [{"id": k, "image": "a.png", "question": "Which?", "answer": str(k)} for k in range(2)]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    assert stream.column_names is None
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: stream)
    source = open_source(PREFIX + "a/b", streaming=True, images=tmp_path)
    assert source.schema == "jsonl" and [answer(s) for s in source] == ["0", "1"]
    assert next(iter(source))[0]["images"] == [str(tmp_path / "a.png")]


def test_a_hub_out_of_reach_is_one_clear_error(monkeypatch):
    with pytest.raises(ConnectionError, match=r"'hf://a/b' cannot be loaded: the hub does not ans"):
        open_source("hf://a/b")

    def refuse(*args, **options):
        raise ValueError("BuilderConfig 'x' not found. Available: ['y']")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"'hf://a/b' \(split 'dev'.*Available: \['y'\]"):
        open_source("hf://a/b", split="dev", config="x")

    def needs_script(*args, **options):
        raise RuntimeError("Dataset scripts are no longer supported, but found VQAv2.py")

    monkeypatch.setattr(datasets, "load_dataset", needs_script)
    with pytest.raises(ValueError, match="'hf://a/b'.*scripts are no longer supported"):
        open_source("hf://a/b")


# --- Size ---


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_an_index_of_many_rows_is_small(tmp_path, ending):
    count = 50_000
    row = json.dumps({"id": 123, "image": "a.png", "question": "x" * 200, "answer": "b"})
    path = tmp_path / f"rows.{ending}"
    if ending == "csv":
        path.write_text("question,answer\n" + ("x" * 200 + ",b\n") * count)
    else:
        rows = ",\n".join([row] * count) if ending == "json" else "\n".join([row] * count)
        path.write_text(f"[{rows}]" if ending == "json" else rows)
    tracemalloc.start()
    source = open_source(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == count and answer(source[count - 1]) == "b"
    assert held < 26 * count  # Three numbers of 8 bytes for each row.
    assert peak < 8e6 + 60 * count


def test_an_index_of_many_members_is_small(tmp_path):
    count = 2000
    files = [(f"{k:09d}.{end}", b"a") for k in range(count) for end in ("jpg", "txt")]
    path = write_tar(tmp_path / "many.tar", files)
    tracemalloc.start()
    source = open_source(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == count and held < 100 * count and peak < 500 * count


# --- Real data ---


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("easy_vqa", "train", 38575),
        ("coco_yesno", "train", 4867),
        ("coco_yesno", "dev", 1465),
        ("daquar", "train", 6795),
        ("flickr8k", "train", 2000),
        ("flickr8k", "dev", 200),
        ("nlvr1", "dev", 989),
        ("chartqa_subset", "train", 1000),
        ("sroie", "train", 2018),
        ("cifar10", "train", 10000),
        ("fixtures", "train", 60),
    ],
)
def test_real_sets_are_read_whole(data_folder, name, split, count):
    source = open_source(data_folder / name, split=split)
    assert (source.schema, source.name, len(source)) == ("jsonl", name, count)
    samples = [one for samples in source for one in samples]
    assert len(samples) == len({s["id"] for s in samples}) == count
    assert {s["source"] for s in samples} == {name}
    assert min(load_image(samples[-1]["images"][-1]).size) > 20


@pytest.mark.data
def test_real_text_is_read_in_passages(data_folder):
    source = open_source(data_folder / "text")
    samples = [sample for (sample,) in source]
    assert samples[0]["id"] == "tinyshakespeare-1"
    assert samples[0]["text"].startswith("First Citizen:")
    lengths = [len(sample["text"]) for sample in samples]
    assert sum(lengths) > 1_100_000 and max(lengths) < 9_000 and min(lengths[:-1]) > 1_900
