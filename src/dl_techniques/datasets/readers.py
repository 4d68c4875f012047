"""Readers: whole small data sets to lists of samples (large ones: `sources`)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dl_techniques.datasets.conversation_schemas import the_cauldron
from dl_techniques.datasets.image_place import ImagePlace
from dl_techniques.datasets.parquet_rows import ParquetRows
from dl_techniques.datasets.question_schemas import jsonl
from dl_techniques.datasets.row_files import json_object
from dl_techniques.datasets.samples import Sample


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
        return _cauldron_rows(source, "rows", ImagePlace(""), "cauldron")
    path = Path(source)
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise ValueError(f"'{path}' holds no .parquet file.")
    samples = []
    for file in files:
        rows = ParquetRows(file)
        missing = {"images", "texts"} - set(rows.columns)
        if missing:
            raise ValueError(f"{file}: column {sorted(missing)} is missing.")
        inside = (rows[k] for k in range(len(rows)))
        samples += _cauldron_rows(inside, str(file), ImagePlace(str(file.parent)), file.stem)
    return samples


def _cauldron_rows(rows: Iterable[Any], name: str, place: ImagePlace, stem: str) -> list[Sample]:
    samples = []
    for number, row in enumerate(rows, start=1):
        try:
            (sample,) = the_cauldron(row)
        except ValueError as error:
            raise ValueError(f"{name}, row {number}: {error}") from error
        known = {"id": f"{stem}-{number}", "source": sample["source"] or stem}
        samples.append(place.place({**sample, **known}))
    return samples


def read_jsonl(path: str | Path, images: str | Path | None = None) -> list[Sample]:
    """Reads a JSONL file whose images lie in a folder or in a zip archive.

    The rows are those of `question_schemas.jsonl`. `id` defaults to the line's number; where
    several answers are accepted they are kept in `references`, one list per question.

    Args:
        path: the JSONL file.
        images: folder or zip archive of the images; "images.zip/train" is a folder in an archive.
            Default: the first of `<stem>_images.zip`, `<stem>_images/`, `images.zip` and `images/`
            beside the file, else the file's folder. Archives are read lazily.

    Returns:
        One sample per row, in order.

    Raises:
        ValueError: a file is missing, or a row is malformed (file and line are named).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"'{path}' does not exist.")
    place = ImagePlace.beside(path) if images is None else ImagePlace.at(images)
    samples = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                (sample,) = jsonl(json_object(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            sample["id"] = sample["id"] or f"{path.stem}-{number}"
            sample["source"] = sample["source"] or path.parent.name
            if "answers" in sample:
                sample["references"] = [sample.pop("answers")]
            samples.append(place.place(sample))
    return samples
