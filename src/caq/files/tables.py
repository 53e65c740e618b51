"""Tables of rows: CSV, with whichever of three delimiters it has, and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from caq.errors import InvalidInput, first_line
from caq.files.content import read_text, require_file

_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
        columns: by name, in order.
        rows: each with its place for messages.
        problems: rows that do not fit the columns.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, Mapping[str, Any]], ...]
    problems: tuple[str, ...] = ()


def read_csv(path: Path) -> Table:
    """Read a CSV whose first line names the columns; the delimiter is what that line has most of.

    Raises:
        InvalidInput: unreadable, or quotes that do not close.
    """
    text = read_text(path)
    header = text.partition("\n")[0]
    most = csv.field_size_limit(max(len(text), 1))
    try:
        reader = csv.DictReader(StringIO(text, newline=""), strict=True, delimiter=max(_DELIMITERS, key=header.count))
        numbered: list[tuple[str, dict[Any, Any]]] = [(f"{path}:{reader.line_num}", row) for row in reader]
        columns: Sequence[str] = reader.fieldnames or ()
    except csv.Error as error:
        raise InvalidInput(f"{path}: {error}; give a UTF-8 CSV with a line of columns") from error
    finally:
        csv.field_size_limit(most)
    # csv puts surplus fields under the key None, and gives missing ones the value None.
    unlike = [where for where, row in numbered if None in row or None in row.values()]
    problems = [
        f"{where}: has other columns than the first line names; quote texts that hold commas" for where in unlike
    ]
    return Table(tuple(columns), tuple(row for row in numbered if row[0] not in {*unlike}), tuple(problems))


def read_parquet(path: Path, wanted: Collection[str] | None = None) -> Table:
    """Read a Parquet file, or those columns that are wanted of it.

    Raises:
        InvalidInput: it is none.
    """
    from pyarrow.parquet import ParquetFile

    place = require_file(path)
    try:
        with ParquetFile(place) as file:
            columns = tuple(file.schema_arrow.names)
            chosen = [name for name in columns if wanted is None or name in wanted]
            rows = [row for batch in file.iter_batches(columns=chosen) for row in batch.to_pylist()] if chosen else []
    except Exception as error:  # pyarrow documents no closed set of errors
        raise InvalidInput(f"{path}: not readable as Parquet: {first_line(error)}; give a whole file") from error
    return Table(columns, tuple((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)))
