"""Small sources for trying whole pipelines on a CPU: captions, questions and text as files."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from dl_techniques.datasets.image_files import source_key
from dl_techniques.datasets.readers import read_samples
from dl_techniques.datasets.samples import Sample, group_by_image, split_by_image
from dl_techniques.datasets.shapes import ShapesCaptions, generate_shapes
from dl_techniques.preprocessing.chat_templates import GHOSTVIS, NVLM
from dl_techniques.preprocessing.image_processors import NVLMImageProcessor
from dl_techniques.preprocessing.images import load_image
from dl_techniques.preprocessing.messages import IMAGE_MARK
from dl_techniques.preprocessing.tokenizer import SentencePieceTokenizer

SPECIAL_TOKENS = (IMAGE_MARK, *GHOSTVIS.markers, *NVLM.markers, *NVLMImageProcessor().tags)
_TEXT_LINES = 8  # Of a passage.
_FINISHED = "made_of.json"


def write_tiny_sources(
    folder: str | Path,
    data: str | Path | None = None,
    captions: int = 4000,
    turns: int = 3,
    held_out_share: float = 0.1,
    vocab_size: int = 2048,
    seed: int = 0,
) -> Path:
    """Write sources that `open_folder` finds, held-out samples beside them, and a tokenizer.

    `captions`, `questions`, `phrases` (both without their pictures) and `text` are sources;
    `held_out/captions.jsonl`, `.../questions.jsonl` and `.../text.txt` are held out by picture (the
    text by its end); `tokenizer` is trained on the texts. A finished folder is not made again: its
    `made_of.json` names the arguments.

    Args:
        folder: where.
        data: a folder with `easy_vqa` (a folder for `read_samples`) and `text` (with a .txt file).
            None: the questions are those about generated shapes, the text their captions.
        captions: number of generated pictures with captions.
        turns: the most questions of a sample, so that fewer answers can be guessed from others.
        held_out_share: of the pictures, and of the text.
        vocab_size: of the tokenizer.
        seed: of the pictures and of the split.

    Returns:
        The folder.

    Raises:
        ValueError: the data cannot be read, or the folder was made of other arguments.
    """
    folder = Path(folder)
    made_of = {
        "data": None if data is None else str(Path(data).resolve()),
        **{"captions": captions, "turns": turns, "held_out_share": held_out_share},
        **{"vocab_size": vocab_size, "seed": seed},
    }
    if (folder / _FINISHED).is_file():
        found = json.loads((folder / _FINISHED).read_text(encoding="utf-8"))
        if found != made_of:
            raise ValueError(
                f"{folder} holds sources that were made of {found}, not of {made_of}: remove it, "
                "or ask for the same."
            )
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    few = max(1, round(captions * held_out_share))
    described = ShapesCaptions("train", captions, seed)
    questions, held_out, text = _questions_and_text(data, held_out_share, captions, seed)
    passages = _passages(text)
    cut = min(round(len(passages) * (1.0 - held_out_share)), len(passages) - 1)
    if cut < 1:
        raise ValueError(f"The text has {len(passages)} passages of {_TEXT_LINES} lines: too few.")
    _write_samples(folder / "captions" / "train.jsonl", described)
    _write_samples(folder / "questions" / "train.jsonl", _in_parts(questions, turns))
    without = ({**s, "images": []} for s in (*described, *_in_parts(questions, turns)))
    _write_samples(folder / "phrases" / "train.jsonl", without)
    _write_text(folder / "text" / "train.txt", passages[:cut])
    _write_samples(folder / "held_out" / "captions.jsonl", ShapesCaptions("heldout", few, seed))
    _write_samples(folder / "held_out" / "questions.jsonl", held_out)
    _write_text(folder / "held_out" / "text.txt", passages[cut:])
    texts = [m["content"] for s in (*described, *questions) for m in s["messages"]]
    tokenizer = SentencePieceTokenizer.train(
        [*dict.fromkeys(texts), *passages[:cut]], vocab_size, special_tokens=list(SPECIAL_TOKENS)
    )
    tokenizer.save(folder / "tokenizer")
    (folder / _FINISHED).write_text(json.dumps(made_of), encoding="utf-8")
    return folder


def _questions_and_text(data, held_out_share, pictures, seed):
    """Return (samples to learn, samples held out, plain text)."""
    if data is None:
        few = max(1, round(pictures * held_out_share))
        train, held_out = (
            list(generate_shapes(split, count, seed + 1))
            for split, count in (("train", pictures), ("heldout", few))
        )
        return train, held_out, "\n".join(s["messages"][1]["content"] for s in train)
    texts = sorted((Path(data) / "text").glob("*.txt"))
    if not texts:
        raise ValueError(f"'{Path(data) / 'text'}' has no .txt file.")
    samples = group_by_image(read_samples(Path(data) / "easy_vqa"))
    train, held_out = split_by_image(samples, held_out_share, seed)
    return train, held_out, texts[0].read_text(encoding="utf-8")


def _in_parts(samples: Iterable[Sample], turns: int) -> list[Sample]:
    """Return samples of so many questions at most, each with the pictures."""
    parts = []
    for sample in samples:
        messages = sample["messages"]
        for start in range(0, len(messages), 2 * turns):
            name = f"{sample['id']}-{start // 2}"
            part = {"id": name, "messages": messages[start : start + 2 * turns]}
            parts.append({**part, "source": sample["source"], "images": sample["images"]})
    return parts


def _passages(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    starts = range(0, len(lines), _TEXT_LINES)
    return ["\n".join(lines[start : start + _TEXT_LINES]) for start in starts]


def _write_text(path: Path, passages: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(passages), encoding="utf-8")


def _write_samples(path: Path, samples: Iterable[Sample]) -> None:
    pictures = path.parent / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    names: dict[tuple, str] = {}
    with path.open("w", encoding="utf-8") as file:
        for sample in samples:
            images = []
            for image in sample["images"]:
                key = source_key(image)
                if key not in names:
                    names[key] = f"{path.stem}_{len(names):05d}.png"
                    load_image(image).save(pictures / names[key])
                images.append(names[key])
            row = {k: sample[k] for k in ("id", "source", "messages", "kinds") if k in sample}
            file.write(json.dumps({**row, "images": images}) + "\n")
