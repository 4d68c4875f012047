"""Shares by name, and the sources of recipes in folders and on the hub."""

import json
import re

import datasets
import pytest
from inspected_samples import draw, png, question_rows, write_rows

from dl_techniques.datasets.mixture_recipes import MIXTURES, parse_shares
from dl_techniques.datasets.recipe_sources import HUB_SOURCES, open_folder, open_recipe
from dl_techniques.datasets.sources import StreamingSource

pytestmark = pytest.mark.no_backend


def test_shares_are_read_from_a_name_or_a_list():
    assert parse_shares("vision_sft_minimal") == MIXTURES["vision_sft_minimal"]
    assert parse_shares("a-b=0.5, c=2,d=0") == {"a-b": 0.5, "c": 2.0, "d": 0.0}
    parse_shares("vision_sft")["new"] = 1  # A copy.
    assert "new" not in MIXTURES["vision_sft"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vision_stf", r"Unknown mixture 'vision_stf': expected one of \['nvlm', .*'vqa=0.7,text"),
        ("a=0.5,b", "'b' in the mixture 'a=0.5,b' is no share; expected NAME=NUMBER"),
        ("a=0.5,", "'' in the mixture"),
        ("=0.5", "'=0.5' in the mixture"),
        ("a=half", "'a=half' in the mixture"),
        ("a=1=2", "'a=1=2' in the mixture"),
        ("a=-0.1,b=1", "share of 'a' must be a finite number >= 0, got -0.1"),
        ("a=nan", "share of 'a' must be a finite number >= 0, got nan"),
        ("a=1,b=1,a=2", "Source 'a' occurs twice"),
    ],
)
def test_bad_shares(text, message):
    with pytest.raises(ValueError, match=message):
        parse_shares(text)


@pytest.fixture
def recipe_folder(tmp_path):
    """Sources of vision_sft_minimal in several layouts."""
    write_rows(tmp_path / "vqav2" / "train.jsonl", question_rows(3))
    write_rows(tmp_path / "textvqa" / "train.jsonl", question_rows(4))
    write_rows(tmp_path / "textvqa" / "validation.jsonl", question_rows(1))
    write_rows(tmp_path / "chartqa.jsonl", [{**question_rows(1)[0], "image": "a.png"}])
    turns = [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "It is a red square."},
    ]
    llava = tmp_path / "llava_instruct_150k" / "llava_instruct_150k.json"
    llava.parent.mkdir()
    llava.write_text(json.dumps([{"id": "1", "image": "b.png", "conversations": turns}]))
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    write_rows(tmp_path / "smoltalk" / "train.jsonl", [{"messages": messages}] * 2)
    for place in ("chartqa_images", "coco"):
        (tmp_path / place).mkdir()
        for name in ("a.png", "b.png"):
            (tmp_path / place / name).write_bytes(png())
    return tmp_path


def test_a_recipe_is_opened_from_a_folder(recipe_folder):
    images = {"llava_instruct_150k": recipe_folder / "coco"}
    sources = open_recipe("vision_sft_minimal", recipe_folder, images=images)
    assert list(sources) == list(MIXTURES["vision_sft_minimal"])
    assert {name: len(source) for name, source in sources.items()} == {
        **{"llava_instruct_150k": 1, "vqav2": 3, "textvqa": 4, "chartqa": 1, "smoltalk": 2}
    }
    assert sources["llava_instruct_150k"][0][0]["images"] == [str(recipe_folder / "coco/b.png")]
    count = draw(sources, MIXTURES["vision_sft_minimal"], 5000)
    assert not count.drops
    assert max(abs(n["token_share"] - n["target"]) for n in count.shares.values()) < 0.01
    assert len(open_folder(recipe_folder, ["textvqa"], split="validation")["textvqa"]) == 1


def test_all_sources_that_a_folder_lacks_are_named(recipe_folder):
    (recipe_folder / "chartqa.jsonl").unlink()
    (recipe_folder / "vqav2").rename(recipe_folder / "VQAv2")
    with pytest.raises(ValueError, match=r"lacks the sources \['vqav2', 'chartqa'\].*VQAv2"):
        open_recipe("vision_sft_minimal", recipe_folder)
    with pytest.raises(ValueError, match="is no folder"):
        open_recipe("vision_sft", recipe_folder / "chartqa_images" / "a.png")
    write_rows(recipe_folder / "one.jsonl", question_rows(1))
    (recipe_folder / "one.txt").write_text("text")
    with pytest.raises(ValueError, match=r"several files.*'one': \['one.jsonl', 'one.txt'\]"):
        open_folder(recipe_folder, ["one"])


def test_contradicting_arguments_of_a_recipe_are_refused(recipe_folder):
    with pytest.raises(ValueError, match="Unknown mixture 'sft'"):
        open_recipe("sft", recipe_folder)
    with pytest.raises(ValueError, match="streaming belongs to the hub"):
        open_recipe("vision_sft_minimal", recipe_folder, streaming=True)
    for folder in (recipe_folder, None):
        with pytest.raises(ValueError, match=r"images names \['llava'\]"):
            open_recipe("vision_sft_minimal", folder, images={"llava": recipe_folder})


@pytest.fixture
def hub(monkeypatch):
    """Calls of `datasets.load_dataset`; everything has two questions."""
    calls = {}

    def load_dataset(path, **options):
        calls[path] = options
        rows = [{"question": "What?", "answer": "red", "image": "a.png"}] * 2
        table = datasets.Dataset.from_list(rows)
        return table.to_iterable_dataset() if options["streaming"] else table

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize("streaming", [False, True])
def test_a_recipe_is_opened_from_the_hub(hub, tmp_path, streaming):
    images = {"llava_instruct_150k": tmp_path}
    sources = open_recipe("vision_sft", streaming=streaming, images=images)
    assert list(sources) == list(MIXTURES["vision_sft"])
    own = {
        "liuhaotian/LLaVA-Instruct-150K": {"data_files": "llava_instruct_150k.json"},
        "HuggingFaceM4/A-OKVQA": {},
        "HuggingFaceM4/VQAv2": {},
        "HuggingFaceM4/OK-VQA": {},
        "textvqa/textvqa": {},
        "HuggingFaceM4/the_cauldron": {"name": "st_vqa"},
        "HuggingFaceM4/DocumentVQA": {},
        "HuggingFaceM4/ChartQA": {},
        "HuggingFaceTB/smoltalk": {"name": "all"},
    }
    every = {"split": "train", "streaming": streaming}
    assert hub == {name: {**options, **every} for name, options in own.items()}
    assert isinstance(sources["vqav2"], StreamingSource) == streaming
    assert sources["llava_instruct_150k"][0][0]["images"] == [str(tmp_path / "a.png")]


def test_what_the_hub_lacks_is_named(hub, tmp_path):
    with pytest.raises(ValueError, match=r"on the hub is known for \['laion_filtered'\].*folder"):
        open_recipe("vision_pretrain")
    with pytest.raises(
        ValueError, match=r"no pictures for \['sharegpt4v', 'llava_instruct_150k'\]"
    ):
        open_recipe("vision_sft_premium")
    with pytest.raises(ValueError, match="images={'sharegpt4v': FOLDER}"):
        open_recipe("vision_sft_premium", images={"llava_instruct_150k": tmp_path})
    assert not hub


def test_a_data_set_made_by_a_script_is_one_clear_error(monkeypatch, tmp_path):
    def refuse(path, **options):
        raise RuntimeError("Dataset scripts are no longer supported, but found x.py")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    message = "'hf://liuhaotian/LLaVA-Instruct-150K'.* cannot be loaded: .*no longer supported"
    with pytest.raises(ValueError, match=message):
        open_recipe("nvlm", images={"llava_instruct_150k": tmp_path})


def test_every_source_of_a_recipe_but_one_has_a_place():
    used = {source for shares in MIXTURES.values() for source in shares}
    assert used - set(HUB_SOURCES) == {"laion_filtered"}
    assert set(HUB_SOURCES) - used == {"lnqa"}


def test_a_recipe_in_a_folder(command, recipe_folder):
    (recipe_folder / "llava_instruct_150k" / "b.png").write_bytes(png())
    flags = ["--mixture", "vision_sft_minimal", "--tokens", 3000]
    code, out, err = command("data", "inspect", recipe_folder, *flags)
    assert (code, err) == (0, "")
    assert re.search(r"^chartqa +10.0% \| +(9|10)\.\d%", out, re.MULTILINE)
