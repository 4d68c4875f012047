"""Rows of parquet files, read one row group at a time."""

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from dl_techniques.datasets.row_files import FileRows

_KEPT_BYTES = 1 << 30


class ParquetRows(FileRows):
    """Rows of a parquet file; a row group is read when one of its rows is asked for.

    Groups that were read are kept, of all files together up to 1 GiB.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the file is no parquet file.
    """

    def __init__(self, path: str | Path):
        super().__init__(path)
        pyarrow, parquet = _import_pyarrow()
        try:
            file = parquet.ParquetFile(self.path)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{self.path} is no parquet file: {error}") from error
        with file:
            groups = file.metadata.num_row_groups
            counts = [file.metadata.row_group(k).num_rows for k in range(groups)]
            self.columns = list(file.schema_arrow.names)
        self.block_ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self.block_ends[-1]) if len(self.block_ends) else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        group = int(np.searchsorted(self.block_ends, index, side="right"))
        first = int(self.block_ends[group - 1]) if group else 0
        changed = os.stat(self.path).st_mtime_ns
        table = _groups.get(str(self.path), changed, group)
        return table.slice(index - first, 1).to_pylist()[0]


class _RowGroups:
    """Row groups that were read last, up to a number of bytes, at least one."""

    def __init__(self, kept_bytes: int):
        self._kept_bytes = kept_bytes
        self._tables: OrderedDict[tuple, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str, changed: int, group: int) -> Any:
        """Returns a row group as a table; `changed` tells a file from an older one of its name."""
        key = (path, changed, group)
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
                return self._tables[key]
        _, parquet = _import_pyarrow()
        with parquet.ParquetFile(path) as file:
            table = file.read_row_group(group)
        with self._lock:
            self._tables[key] = table
            kept = sum(each.nbytes for each in self._tables.values())
            while kept > self._kept_bytes and len(self._tables) > 1:
                kept -= self._tables.popitem(last=False)[1].nbytes
        return table


_groups = _RowGroups(_KEPT_BYTES)


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            "Parquet files need pyarrow: pip install 'dl_techniques[data]'."
        ) from error
    return pyarrow, parquet
