"""`data inspect`: counts and faults of a data set, the page of samples, the command."""

import io
import json
import re

import numpy as np
import pytest
from command_line import check_one_line_error
from inspected_samples import LENGTH, png, processor, question_rows, sample, write_rows
from PIL import Image

from dl_techniques.datasets import sample_reader
from dl_techniques.datasets.inspect_command import inspect_source
from dl_techniques.datasets.inspection import as_text, inspect_samples
from dl_techniques.datasets.inspection_page import as_html
from dl_techniques.datasets.sources import open_source
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.images import image_size_of
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer

pytestmark = pytest.mark.no_backend


def test_plain_texts_are_looked_at_too(tmp_path):
    (tmp_path / "corpus.txt").write_text("to be, or not to be")
    source = open_source(tmp_path / "corpus.txt")
    found = inspect_samples(source[0], processor())
    # 19 characters and the end token, of which the first is not learned.
    assert as_text(found).splitlines()[:2] == [
        "1 good samples, 0 questions, 0 images, 20 tokens, 19 of them learned",
        "0 of 1 samples are bad",
    ]


def test_the_rows_looked_at_are_spread_over_all(tmp_path):
    rows = [{"question": "q", "answer": "a" * (1 + k)} for k in range(7)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = inspect_source(str(tmp_path / "r.jsonl"), limit=4)
    assert "7 rows; looked at one of every 2" in report.text
    answers = [sample["messages"][1]["content"] for sample, _ in report.groups[""]]
    assert [len(answer) for answer in answers] == [1, 3, 5, 7]


def test_all_images_of_a_sample_are_counted():
    turns = [
        message
        for k in range(3)
        for message in (
            {"role": "user", "content": [{"type": "image", "image": png((6, 9 + k))}]},
            {"role": "assistant", "content": "a" * 40},
        )
    ]
    found = inspect_samples([{"id": "x", "messages": turns}], processor())
    assert len(found.row_tokens) > 1  # Rows repeat images, which are counted once.
    assert found.sizes == [(9, 6), (10, 6), (11, 6)] and found.images == 3


def test_faults_are_told_by_their_reason():
    samples = [
        *(sample("a", "red"), sample("b", " "), ValueError("line 3: not JSON"), {"id": "d"}),
        *(sample("e", "red", ["/gone.png"]), sample("f", "red", [b"?"])),
    ]
    found = inspect_samples(samples, processor())
    assert [(item.sample_id, item.reason) for item in found.report.items] == [
        ("b", "empty answer"),
        ("2", "malformed sample"),
        ("d", "malformed sample"),
        ("e", "missing image"),
        ("f", "unreadable image"),
    ]
    assert found.samples == 1 and found.report.total == 6


def test_an_image_file_is_read_once(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png())
    reads = []
    monkeypatch.setattr(
        sample_reader, "image_size_of", lambda image: reads.append(image) or image_size_of(image)
    )
    files = [str(tmp_path / "a.png"), str(tmp_path / "a.png"), png()]
    found = inspect_samples(
        [sample(k, "red", [image]) for k, image in enumerate(files)], processor()
    )
    assert found.sizes == [(9, 6)] * 3 and reads == [files[0], files[2]]


# --- The page ---


def page_of(*samples, used=None):
    used = used or processor()
    found = inspect_samples(samples, used)
    assert not len(found.report)
    page = as_html({"group <1>": found.shown}, used, "title <2>", "text <3>")
    return page, page[page.index("<h2>") :]


def test_the_page_marks_what_is_learned():
    page, cards = page_of(sample("<4>", "red <5>", [png()]))
    for escaped in ("title", "text"):
        assert page.count(f"{escaped} &lt;") >= 1
    assert "<h2>group &lt;1&gt;</h2>" in cards and "<h3>own &lt;4&gt;</h3>" in cards
    assert re.search(r"<i>\[2 image tokens\]</i>", cards)
    (learned,) = re.findall("<mark>(.*?)</mark>", cards, re.DOTALL)
    assert "red &lt;5&gt;" in learned and "what?" not in learned
    assert not re.search(r"<\d>", page)


def test_plain_text_is_marked_but_for_its_first_token():
    _, cards = page_of({"text": "to be", "id": "t", "source": ""})
    assert "<p>t<mark>o be&lt;eos&gt;</mark></p>" in cards and "<h3>t</h3>" in cards


def test_the_middle_of_long_texts_is_left_out():
    used = VQADataProcessor(4, 9000, tokenizer=CharacterTokenizer(128))
    long = sample("x", "yes")
    long["messages"][0]["content"] = "b" * 3000
    _, cards = page_of(long, used=used)
    (text,) = re.findall("<p>(.*?)</p>", cards)
    (left_out,) = re.findall(r" \[([\d,]+) characters left out\] ", text)
    shown = re.sub("<i>.*?</i>|</?mark>", "", text).replace("&lt;", "<").replace("&gt;", ">")
    assert len(shown) == 2000
    assert 3000 + 1 - shown.count("b") == int(left_out.replace(",", ""))  # <bos> has a b, too.
    assert text.endswith("<mark> yes&lt;eos&gt;</mark>")
    short = sample("x", "a" * 1900)
    assert "left out" not in page_of(short, used=used)[1]


def test_the_middle_of_a_learned_text_is_left_out():
    used = VQADataProcessor(4, 9000, tokenizer=CharacterTokenizer(128))
    _, cards = page_of({"text": "c" * 2500, "id": "t"}, used=used)
    first, last = re.findall("<mark>(.*?)</mark>", cards)
    # 2500 characters and "<eos>"; the first one is not learned.
    assert first == "c" * 999 and last == "c" * 995 + "&lt;eos&gt;"
    assert "[505 characters left out]" in cards


def test_many_images_and_rows_are_counted():
    images = [png((4, 4 + k)) for k in range(9)]
    used = processor(tokens_per_image=1)
    _, cards = page_of(sample("x", "red", images), used=used)
    assert cards.count("data:image/jpeg;base64,") == 6 and "[3 more images]" in cards
    _, cards = page_of({"text": "a" * (6 * LENGTH - 1), "id": "t"})
    assert cards.count("<mark>") == 4 and "[2 more rows]" in cards


def test_a_broken_image_is_told_in_its_place():
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    broken = file.getvalue()[:2000]
    _, cards = page_of(sample("x", "red", [broken]))
    assert "<img" not in cards
    assert re.search('<div class="broken">[^<]*cannot be decoded: truncated', cards)
    assert "red" in cards


def test_the_page_leaves_images_in_memory_as_they_are():
    large = Image.fromarray(np.zeros((500, 900, 3), np.uint8))
    page_of(sample("x", "red", [large]))
    assert large.size == (900, 500)


# --- The command ---


@pytest.fixture
def mixture_folder(tmp_path):
    write_rows(tmp_path / "short" / "train.jsonl", question_rows(40, "a"))
    write_rows(tmp_path / "long.jsonl", [*question_rows(9, "b" * 98), {"id": "bad", "x": 1}])
    picture = {**question_rows(1)[0], "image": "a.png"}
    write_rows(tmp_path / "seen" / "train.jsonl", [picture, {**picture, "image": "gone.png"}])
    (tmp_path / "seen" / "a.png").write_bytes(png())
    return tmp_path


def test_the_command_shows_a_mixture(command, mixture_folder):
    page = mixture_folder / "page.html"
    flags = ["--mixture", "short=0.5,long=0.3,seen=0.2", "--tokens", 20000, "--page", page]
    code, out, err = command("data", "inspect", mixture_folder, *flags)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    rows = {line.split()[0]: line.replace("|", "").split() for line in lines[2:5]}
    assert list(rows) == ["short", "long", "seen"]
    assert [row[1] for row in rows.values()] == ["50.0%", "30.0%", "20.0%"]
    shares = np.array([[float(c.rstrip("%")) for c in (r[2], r[7], r[8])] for r in rows.values()])
    assert np.abs(shares[:, 0] - [50, 30, 20]).max() <= 1  # By answer tokens.
    assert shares[1, 1] > 80  # By rows, long answers are most of what is learned.
    assert np.abs(shares[:, 2] - [50, 30, 20]).max() <= 1
    assert [row[4] for row in rows.values()] == ["3.0", "100.0", "5.0"]
    (dropped,) = re.findall(r"^  seen +missing image +(\d+)$", out, re.MULTILINE)
    assert int(dropped) == pytest.approx(0.2 * 20000 / 5, rel=0.1)
    assert re.search("^  long +malformed sample +[0-9]", out, re.MULTILINE)
    assert "learned tokens per row" in out and "most frequent: 9 x 6" in out
    text = page.read_text()
    assert re.findall("<h2>(.*?)</h2>", text) == ["short", "long", "seen"]
    assert text.count("<section>") == 6 + 6 + 1 and text.count("data:image/jpeg;base64,") == 1
    assert lines[3] in text and lines[-1] == f"{page} written."


def test_the_command_draws_no_more_than_the_epochs(command, mixture_folder):
    flags = ["--mixture", "short=1,long=1", "--epochs", 2]
    code, out, _ = command("data", "inspect", mixture_folder, *flags)
    assert code == 0
    assert "Drawn: 2,040 answer tokens in 100 samples; by rows 2,040 in 100." in out


def test_the_command_shows_a_recipe(command):
    code, out, err = command("data", "inspect", "vision_pretrain")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "vision_pretrain: shares of the answer tokens",
        "  coco_captions    10.0%  hf://HuggingFaceM4/COCO (2014_captions)",
        "  laion_filtered   90.0%  no place on the hub is known: give a folder",
        "To look at downloaded sources: "
        "dl-techniques data inspect FOLDER --mixture vision_pretrain",
    ]
    _, out, _ = command("data", "inspect", "vision_sft_premium")
    assert "(ShareGPT4V), pictures from elsewhere: coco/train2017" in out


def test_a_folder_with_a_recipes_name_is_a_folder(command, tmp_path, monkeypatch):
    write_rows(tmp_path / "nvlm" / "train.jsonl", question_rows(3))
    monkeypatch.chdir(tmp_path)
    assert "nvlm: 3 rows" in command("data", "inspect", "nvlm")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mixture", "short=1,other=1"], "lacks the sources ['other']"),
        (["--mixture", "short=-1,long=1"], "share of 'short' must be"),
        (["--mixture", "short=0"], "At least one share must be positive"),
        (["--mixture", "shorts"], "Unknown mixture 'shorts'"),
        (["--mixture", "short=1", "--epochs", "0"], "epochs must be"),
        (["--mixture", "short=1", "--limit", "5"], "--limit cannot be used here"),
        (["--mixture", "short=1", "--schema", "csv"], "--schema cannot be used here"),
        (["--mixture", "short=1", "--images", "x"], "--images cannot be used here"),
        (["--tokens", "5"], "--tokens cannot be used here: there is no --mixture"),
        (["--epochs", "5"], "--epochs cannot be used here"),
    ],
)
def test_the_command_refuses(command, mixture_folder, arguments, message):
    check_one_line_error(command("data", "inspect", mixture_folder, *arguments), message)


def test_the_command_refuses_what_a_recipe_without_data_cannot_have(command, tmp_path):
    for flags in (["--page", tmp_path / "p.html"], ["--tokens", 5], ["--tokenizer", "x"]):
        result = command("data", "inspect", "nvlm", *flags)
        check_one_line_error(result, f"{flags[0]} cannot be used here: nvlm is a mixture")
