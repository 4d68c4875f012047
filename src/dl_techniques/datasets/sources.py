"""Sources: the samples of a data set by number, whatever files or hub it comes from."""

import functools
import itertools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dl_techniques.datasets.hub_rows import PREFIX, HubRows, load_hub
from dl_techniques.datasets.image_place import ImagePlace
from dl_techniques.datasets.json_rows import open_json
from dl_techniques.datasets.parquet_rows import ParquetRows
from dl_techniques.datasets.permutation import BlockOrder
from dl_techniques.datasets.row_files import (
    CsvRows,
    FileRows,
    JoinedRows,
    JsonLinesRows,
    TextRows,
)
from dl_techniques.datasets.samples import Sample
from dl_techniques.datasets.schemas import check_schema, detect_schema
from dl_techniques.datasets.tar_rows import TarRows

_OPENERS: dict[str, Callable[[Path], FileRows]] = {
    ".parquet": ParquetRows,
    ".tar": TarRows,
    ".jsonl": JsonLinesRows,
    ".csv": CsvRows,
    ".tsv": CsvRows,
    ".json": open_json,
    ".txt": TextRows,
}
_ROWS = (".jsonl", ".csv", ".tsv")
_SPLITS = ("train", "validation", "valid", "val", "dev", "test")


class Source:
    """The samples of a data set by the number of their row; small, and can be pickled.

    `source[i]` is the list of the samples of row i: one, several (captions), or none (turns that
    are rated too low). A row of which nothing can be used raises a `ValueError` that names it.

    Args:
        rows: what holds the rows; see `row_files`.
        schema: a name in `SCHEMAS`.
        name: the `source` of samples whose layout names none.
        images: where named images are. Default: the rows know.
        options: of the schema.
    """

    def __init__(
        self,
        rows: Any,
        schema: str,
        name: str,
        images: ImagePlace | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        self.schema, self.name = schema, name
        self._rows, self._images = rows, images
        self._samples = functools.partial(check_schema(schema, options or {}), **(options or {}))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> list[Sample]:
        index = operator.index(index)
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"row {index} of {len(self)} rows in {self.name}")
        try:
            samples = self._samples(self._rows[number])
        except ValueError as error:
            raise ValueError(f"{self.where(number)}: {error}") from error
        place = self._images or self._rows.images(number)
        return _finish(samples, self._rows.default_id(number), self.name, place)

    def where(self, index: int) -> str:
        """Returns where a row is, for error messages."""
        return self._rows.where(index)

    @functools.cached_property
    def blocks(self) -> BlockOrder | None:
        """The order in which rows are read quickly; None where every order is as quick."""
        ends = self._rows.block_ends
        return None if ends is None else BlockOrder(ends)


class EndOfStreamError(IndexError):
    """A stream has no row of this number, nor any after it."""


class StreamingSource:
    """The samples of a data set row by row, read over the network while they are used.

    Each iteration gives the lists of samples that `Source` has. A row of which nothing can be used
    raises a `ValueError`; the iterator can be asked for the next row after that.

    `source[i]` is row i as well: quick where it is the next one, else the data set is read from its
    beginning, or by its own `skip`. Its length is not known.

    Args:
        dataset: an iterable of rows.
        schema: a name in `SCHEMAS`.
        name: the `source` of samples whose layout names none.
        images: where named images are.
        options: of the schema.
    """

    def __init__(
        self,
        dataset: Iterable[Mapping[str, Any]],
        schema: str,
        name: str,
        images: ImagePlace | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        self.schema, self.name = schema, name
        self._dataset, self._images = dataset, images or ImagePlace("")
        self._samples = functools.partial(check_schema(schema, options or {}), **(options or {}))
        self._upcoming: tuple[int, Iterator] | None = None

    def __getitem__(self, index: int) -> list[Sample]:
        if operator.index(index) < 0:
            raise ValueError(f"{self.name} is a stream and has no row {index}: count from 0.")
        upcoming, rows = self._upcoming or (-1, iter(()))
        if upcoming != index:
            rows = _from(self._dataset, index)
        try:
            row = next(rows)
        except StopIteration:
            raise EndOfStreamError(f"{self.name} has no row {index}.") from None
        self._upcoming = index + 1, rows
        return self._row((index + 1, row))

    def where(self, index: int) -> str:
        """Returns where a row is, for error messages."""
        return f"{self.name}, row {index + 1}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_upcoming": None}

    def __iter__(self) -> Iterator[list[Sample]]:
        # A generator would end at the first bad row.
        return map(self._row, enumerate(self._dataset, start=1))

    def _row(self, numbered: tuple[int, Mapping[str, Any]]) -> list[Sample]:
        number, row = numbered
        try:
            samples = self._samples(row)
        except ValueError as error:
            raise ValueError(f"{self.where(number - 1)}: {error}") from error
        return _finish(samples, f"{self.name}-{number}", self.name, self._images)


def _from(rows: Iterable, index: int) -> Iterator:
    """Returns an iterator over rows from this one on."""
    if hasattr(rows, "skip"):
        return iter(rows.skip(index))
    return itertools.islice(iter(rows), index, None)


def _finish(samples: list[Sample], default_id: str, name: str, place: ImagePlace) -> list[Sample]:
    """Returns samples with their images found, and with what their layout does not have."""
    finished = []
    for number, sample in enumerate(samples):
        own_id = default_id if len(samples) == 1 else f"{default_id}-{number}"
        missing = {"id": sample["id"] or own_id, "source": sample["source"] or name}
        finished.append(place.place({**sample, **missing}))
    return finished


def open_source(
    name_or_path: str | Path,
    schema: str | None = None,
    split: str = "train",
    *,
    images: str | Path | None = None,
    annotations: str | Path | None = None,
    streaming: bool = False,
    config: str | None = None,
    revision: str | None = None,
    data_files: Any = None,
    **schema_options: Any,
) -> Source | StreamingSource:
    """Opens a data set without reading its rows.

    Args:
        name_or_path: "hf://owner/name"; a `.parquet`, `.tar` (webdataset), `.jsonl`, `.json`,
            `.csv`, `.tsv` or `.txt` file (passages); or a folder of such files.
        schema: a name in `SCHEMAS`. Default: told by the columns.
        split: which files of a folder, where their names or folders say so
            ("train-00000.parquet"); which split of the hub's data set.
        images: folder or zip archive of the images that rows name; "images.zip/train" is a folder
            in an archive. Default: for text files as `readers.read_jsonl`; else the file's folder.
        annotations: for VQA's questions, the file of the answers; see `json_rows.open_json`.
        streaming: read a hub's data set while it is used.
        config: a configuration of a hub's data set.
        revision: a revision of a hub's data set.
        data_files: some files of a hub's data set.
        **schema_options: of the schema's function, as `min_relevance=3` for "finevision".

    Raises:
        ValueError: nothing is found, the schema cannot be told, an option does not belong here.
        ImportError: a package is missing for this kind of source.
        ConnectionError: the hub cannot be reached.
    """
    if schema is not None:
        check_schema(schema, schema_options)
    place = None if images is None else ImagePlace.at(images)
    on_hub = {"config": config, "revision": revision, "data_files": data_files}
    if streaming:
        return _open_stream(name_or_path, schema, split, place, annotations, on_hub, schema_options)
    rows, short = open_rows(name_or_path, split, annotations=annotations, **on_hub)
    schema = schema or _told_schema(rows)
    return Source(rows, schema, short, place, schema_options)


def open_rows(
    name_or_path: str | Path,
    split: str = "train",
    *,
    annotations: str | Path | None = None,
    config: str | None = None,
    revision: str | None = None,
    data_files: Any = None,
) -> tuple[Any, str]:
    """Opens the rows of a data set, whatever their layout is, without reading them.

    Returns:
        (what holds the rows, see `row_files`; the data set's short name).

    Raises:
        ValueError: nothing is found, or an option does not belong here.
        ImportError: a package is missing for this kind of source.
        ConnectionError: the hub cannot be reached.
    """
    on_hub = {"config": config, "revision": revision, "data_files": data_files}
    name = str(name_or_path)
    if name.startswith(PREFIX):
        _refuse_annotations(annotations, name)
        return HubRows(load_hub(name, split, False, **on_hub), name), name.rpartition("/")[2]
    given = sorted(key for key, value in on_hub.items() if value is not None)
    if given:
        raise _not_on_hub(given, name)
    path = Path(name_or_path)
    parts = [part for part in _open_files(path, split, annotations) if len(part)]
    if not parts:
        raise ValueError(f"'{name}' has no rows.")
    short = path.stem if path.is_file() else path.resolve().name
    return parts[0] if len(parts) == 1 else JoinedRows(parts), short


def _open_stream(
    name_or_path, schema, split, place, annotations, on_hub, options
) -> StreamingSource:
    name = str(name_or_path)
    if not name.startswith(PREFIX):
        raise _not_on_hub("streaming", name)
    _refuse_annotations(annotations, name)
    dataset = load_hub(name, split, True, **on_hub)
    schema = schema or detect_schema(dataset.column_names or next(iter(dataset), {}))
    return StreamingSource(dataset, schema, name.rpartition("/")[2], place, options)


def _refuse_annotations(annotations, name: str):
    if annotations is not None:
        raise ValueError(f"annotations belong to a local file of questions, not to '{name}'.")


def _not_on_hub(what: Any, name: str) -> ValueError:
    return ValueError(
        f"{what} belongs to a data set on the hub ('hf://owner/name'), not to '{name}'."
    )


def _told_schema(rows: Any) -> str:
    """Returns the schema of rows, which must be one; the first rows of files may differ."""
    if isinstance(rows, HubRows):
        return detect_schema(rows.columns)
    told: dict[str, Path] = {}
    for part in rows.parts if isinstance(rows, JoinedRows) else [rows]:
        own = "csv" if isinstance(part, CsvRows) else "jsonl"
        try:
            told.setdefault(detect_schema(part.columns, own), part.path)
        except ValueError as error:
            raise ValueError(f"{part.path}: {error}") from error
    if len(told) > 1:
        found = ", ".join(f"{schema} ({path})" for schema, path in told.items())
        raise ValueError(f"The files have several schemas: {found}. Open them one by one.")
    return next(iter(told))


def _open_files(path: Path, split: str, annotations: Any) -> list[FileRows]:
    files = [path] if path.is_file() else _files(path, split)
    suffix = files[0].suffix.lower()
    if suffix not in _OPENERS:
        raise ValueError(f"'{path}' has none of the endings {sorted(_OPENERS)}.")
    if suffix == ".json":
        if len(files) > 1:
            raise ValueError(f"'{path}' has several files; name one: {_names(files, path)}.")
        return [open_json(files[0], annotations)]
    if annotations is not None:
        raise ValueError(f"annotations belong to a .json file of questions, not to '{path}'.")
    return [_OPENERS[suffix](file) for file in files]


def _files(folder: Path, split: str) -> list[Path]:
    """Returns the files of a split: shards in any depth, or text files in the folder itself."""
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is neither a file nor a folder.")
    named = [file for file in sorted(folder.glob(f"{split}.*")) if file.suffix in _OPENERS]
    if len(named) == 1:
        return named
    # Shards of images may have tables of their addresses beside them.
    for suffix in (".tar", ".parquet"):
        if shards := sorted(folder.rglob(f"*{suffix}")):
            return _of_split(shards, folder, split)
    tables = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in (*_ROWS, ".json")]
    files = tables
    if not tables:
        below = {file.parent for suffix in _ROWS for file in folder.rglob(f"*{suffix}")}
        if below:  # Texts beside rows are answers or vocabularies.
            raise ValueError(
                f"'{folder}' has rows in folders of its own; name one: {_names(below, folder)}."
            )
        files = sorted(folder.rglob("*.txt"))
    if not files:
        raise ValueError(
            f"'{folder}' holds no data set: expected files that end in {sorted(_OPENERS)}; found "
            f"{_names(folder.iterdir(), folder)}."
        )
    if not tables:
        return files
    chosen = _of_split(files, folder, split)
    if len(chosen) > 1 and _split_of(chosen[0], folder, split) is None:
        raise ValueError(f"'{folder}' has several files; name one: {_names(chosen, folder)}.")
    if len({file.suffix.lower() for file in chosen}) > 1:
        raise ValueError(f"'{folder}' has files of several kinds: {_names(chosen, folder)}.")
    return chosen


def _of_split(files: list[Path], folder: Path, split: str) -> list[Path]:
    splits = {file: _split_of(file, folder, split) for file in files}
    named = {name for name in splits.values() if name is not None}
    if not named:
        return files
    chosen = [file for file in files if splits[file] == split]
    unnamed = [file for file in files if splits[file] is None]
    if not chosen or unnamed:
        raise ValueError(
            f"'{folder}' has the splits {sorted(named)}, asked for is '{split}'; files without a "
            f"split in their names: {_names(unnamed, folder)}."
        )
    return chosen


def _split_of(file: Path, folder: Path, split: str) -> str | None:
    """Returns the split that a file's name, or a folder that it is in, begins with."""
    names = "|".join(map(re.escape, sorted({split, *_SPLITS}, key=len, reverse=True)))
    relative = file.relative_to(folder)
    for part in reversed(relative.parts):
        if match := re.match(rf"({names})(?=[-._]|$)", part):
            return match[1]
    return None


def _names(files: Iterable[Path], folder: Path) -> str:
    names = [str(file.relative_to(folder)) for file in files]
    return ", ".join(sorted(names)[:8]) or "none"
