"""Readers: rows on disk to samples (see `samples.make_sample` for the schema)."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dl_techniques.datasets.image_files import ZipMember
from dl_techniques.datasets.samples import Sample, make_sample, normalize_sample


def read_samples(path: str | Path) -> list[Sample]:
    """Reads a data set, recognising its layout.

    Args:
        path: a `.jsonl` file; a `.parquet` file; a folder with parquet files (The Cauldron's
            schema); or a folder with `train.jsonl` or with just one `.jsonl` file.

    Returns:
        One sample per row; `samples.group_by_image` joins rows about one image.

    Raises:
        ValueError: none of these is found, or a row is malformed (file and line are named).
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".jsonl":
        return read_jsonl(path)
    if path.is_file() and path.suffix == ".parquet":
        return read_cauldron(path)
    if path.is_dir():
        jsonl = sorted(path.glob("*.jsonl"))
        if (path / "train.jsonl").is_file():
            return read_jsonl(path / "train.jsonl")
        if len(jsonl) == 1:
            return read_jsonl(jsonl[0])
        if not jsonl and any(path.rglob("*.parquet")):
            return read_cauldron(path)
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"'{path}' holds no data set: expected parquet files, train.jsonl or exactly one "
            f".jsonl file; found {found}. Name one .jsonl file to choose it."
        )
    raise ValueError(f"'{path}' is neither a .jsonl file, a .parquet file nor a folder.")


def read_cauldron(source: Any) -> list[Sample]:
    """Reads rows of The Cauldron's schema.

    A row has `images`, a list of `{"bytes", "path"}` (as Hugging Face stores them) or of decoded
    images, and `texts`, a list of `{"user", "assistant", "source"}`: one conversation. Encoded
    images stay in memory as they are.

    Args:
        source: a parquet file, a folder of parquet files (subfolders included), a
            `datasets.Dataset`, or any iterable of such rows.

    Raises:
        ValueError: there is no parquet file, or a row is malformed (file and row are named).
        ImportError: parquet files are given and pyarrow is not installed.
    """
    if not isinstance(source, (str, Path)):
        return _cauldron_rows(source, "rows", Path(), "cauldron")
    path = Path(source)
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise ValueError(f"'{path}' holds no .parquet file.")
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            "Parquet files need pyarrow: pip install 'dl_techniques[data]'."
        ) from error
    samples = []
    for file in files:
        table = parquet.ParquetFile(file)
        missing = {"images", "texts"} - set(table.schema_arrow.names)
        if missing:
            raise ValueError(f"{file}: column {sorted(missing)} is missing.")
        rows = (
            row
            for batch in table.iter_batches(batch_size=64, columns=["images", "texts"])
            for row in batch.to_pylist()
        )
        samples += _cauldron_rows(rows, str(file), file.parent, file.stem)
    return samples


def _cauldron_rows(rows: Iterable[Any], name: str, folder: Path, stem: str) -> list[Sample]:
    samples = []
    for number, row in enumerate(rows, start=1):
        where = f"{name}, row {number}"
        try:
            images = [_stored_image(image, folder) for image in row["images"] or []]
            turns = [(text["user"], text["assistant"]) for text in row["texts"]]
            source = row["texts"][0].get("source") or stem
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(
                f"{where}: expected 'images' (list) and 'texts' (a non-empty list of dicts with "
                f"'user' and 'assistant'); {type(error).__name__}: {error}."
            ) from error
        if not all(isinstance(text, str) for turn in turns for text in turn):
            raise ValueError(f"{where}: 'user' and 'assistant' must be strings.")
        samples.append(make_sample(f"{stem}-{number}", source, images, turns))
    return samples


def _stored_image(image: Any, folder: Path) -> Any:
    if not isinstance(image, dict):
        return image
    if image.get("bytes") is not None:
        return image["bytes"]
    if not image.get("path"):
        raise TypeError("an image has neither 'bytes' nor 'path'")
    return str(folder / image["path"])


def read_jsonl(path: str | Path, images: str | Path | None = None) -> list[Sample]:
    """Reads a JSONL file whose images lie in a folder or in a zip archive.

    A row names its images (`image`, a name, or `images`, a list of names; none is a text-only row)
    and its text in one of these ways:

    - `question` and `answer`;
    - `question` and `answers` (all accepted; the first one is learned);
    - `sentence` and `answer`: whether the statement is true;
    - `captions`: descriptions (all accepted; the first one is learned);
    - `messages`.

    `id` defaults to the line's number; `type` is kept as the question's kind; where several answers
    are accepted they are kept in `references`, one list per question.

    Args:
        path: the JSONL file.
        images: folder or zip archive of the images. Default: the first of `<stem>_images.zip`,
            `<stem>_images/`, `images.zip` and `images/` beside the file, else the file's folder.
            Archives are read lazily.

    Returns:
        One sample per row, in order.

    Raises:
        ValueError: a file is missing, or a row is malformed (file and line are named).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"'{path}' does not exist.")
    place = _find_images(path) if images is None else Path(images)
    if not place.exists():
        raise ValueError(f"Images '{place}' do not exist: expected a folder or a .zip file.")
    archive = str(place) if place.is_file() else None
    samples = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON ({error}).") from error
            names = _image_names(row, where)
            found = [ZipMember(archive, n) if archive else str(place / n) for n in names]
            samples.append(_jsonl_sample(row, found, where, f"{path.stem}-{number}", path))
    return samples


def _find_images(path: Path) -> Path:
    stem = f"{path.stem}_images"
    for name in (f"{stem}.zip", stem, "images.zip", "images"):
        if (path.parent / name).exists():
            return path.parent / name
    return path.parent


def _image_names(row: Any, where: str) -> list[str]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}.")
    names = row.get("images")
    if names is None:
        names = [] if row.get("image") is None else [row["image"]]
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"{where}: 'image' must be a name and 'images' a list of names.")
    return names


def _jsonl_sample(row: dict, images: list, where: str, default_id: str, path: Path) -> Sample:
    name = str(row.get("id", default_id))
    source = str(row.get("source", path.parent.name))
    if "messages" in row:
        try:
            return normalize_sample(
                {**row, "images": images, "id": name, "source": source}, index=0
            )
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    question, answers = _question_and_answers(row, where)
    sample = make_sample(name, source, images, [(question, answers[0])])
    if len(answers) > 1:
        sample["references"] = [answers]
    if "type" in row:
        sample["kinds"] = [str(row["type"])]
    return sample


def _question_and_answers(row: dict, where: str) -> tuple[str, list[str]]:
    if "captions" in row:
        question, answers = "Describe the picture.", row["captions"]
    else:
        question = row.get("question")
        if question is None and isinstance(row.get("sentence"), str):
            question = f"Is this true? {row['sentence']}"
        answers = row.get("answers", [row["answer"]] if "answer" in row else None)
    if not isinstance(question, str) or not question.strip():
        raise ValueError(
            f"{where}: no question; expected 'question', 'sentence', 'captions' or 'messages', "
            f"found {sorted(row)}."
        )
    valid = isinstance(answers, list) and answers and all(isinstance(a, str) for a in answers)
    if not valid:
        raise ValueError(f"{where}: 'answer' must be a string, or 'answers' a list of strings.")
    return question, answers
