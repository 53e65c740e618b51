"""Local text: files as they are, and the rows of files and of data sets' directories."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from caq.data.documents import KINDS
from caq.errors import InvalidInput, first_line, refuse
from caq.files.content import kind_of
from caq.files.records import Record, read_records
from caq.files.tables import Table, read_csv, read_parquet

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

#: Written by `datasets.save_to_disk`: for a data set, and for several splits of one.
_SAVED = ("state.json", "dataset_dict.json")


def holds_records(path: Path) -> bool:
    """Return whether a path holds rows rather than plain text.

    Raises:
        InvalidInput: it is unreadable, or neither file nor directory.
    """
    return path.is_dir() or kind_of(path) != "text"


def read_rows(path: Path) -> tuple[Record, ...]:
    """Return all rows, each with its place.

    Raises:
        InvalidInput: unreadable, empty, without a column that is read here, or several splits and none called train.
    """
    kind = "directory" if path.is_dir() else kind_of(path)
    if kind in ("lines", "json", "text"):
        records, problems = read_records(path)
        refuse(problems)
        return records
    table = _TABLES[kind](path)
    if not set(KINDS) & set(table.columns):
        wanted = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
        raise InvalidInput(f"{path}: has the columns {', '.join(table.columns) or '(none)'}; needs {wanted}")
    refuse(table.problems)
    if not table.rows:
        raise InvalidInput(f"{path}: is empty; give at least one row")
    return tuple(Record(where, fields) for where, fields in table.rows)


def _directory(path: Path) -> Table:
    with _linked(path) as place:
        try:
            rows = _split(path, _loaded(place))
            columns = tuple(rows.column_names or ())
            chosen = rows.select_columns([kind for kind in KINDS if kind in columns])
            numbered = enumerate(chosen if chosen.column_names else (), start=1)
            return Table(columns, tuple((f"{path}, row {number}", fields) for number, fields in numbered))
        except InvalidInput:
            raise
        except Exception as error:  # datasets documents no closed set of errors
            told = first_line(error).replace(str(place), str(path))
            raise InvalidInput(f"{path}: not readable as a data set: {told}") from error


@contextmanager
def _linked(directory: Path) -> Iterator[Path]:
    """Give a directory's files another home: in its name, `datasets` would take brackets and the like for a pattern."""
    with TemporaryDirectory(prefix="caq-data-") as place:
        for found, folders, files in os.walk(directory.resolve()):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = Path(place, os.path.relpath(found, directory.resolve()))
            inside.mkdir(exist_ok=True)
            for name in files:
                if Path(found, name).is_file():
                    (inside / name).symlink_to(Path(found, name))
        yield Path(place)


def _loaded(path: Path) -> Any:
    from datasets import load_dataset, load_from_disk

    saved = any((path / name).exists() for name in _SAVED)
    return load_from_disk(path) if saved else load_dataset(str(path), streaming=True)


def _split(path: Path, loaded: Any) -> Dataset | IterableDataset:
    if not isinstance(loaded, dict):
        return loaded
    if "train" not in loaded and len(loaded) > 1:
        raise InvalidInput(f"{path}: has the splits {', '.join(loaded)}; give the path of one of them")
    return loaded["train"] if "train" in loaded else next(iter(loaded.values()))


_TABLES = {"directory": _directory, "csv": read_csv, "parquet": lambda path: read_parquet(path, KINDS)}
