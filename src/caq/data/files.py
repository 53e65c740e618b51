"""Local text: files as they are, and the rows of .jsonl, .json and .parquet files and of data sets' directories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from caq.data.documents import KINDS
from caq.errors import InvalidInput, first_line, refuse
from caq.files.records import Record, read_records

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

#: Written by `datasets.save_to_disk`: for a data set, and for several splits of one.
_SAVED = ("state.json", "dataset_dict.json")


def holds_records(path: Path) -> bool:
    """Return whether a path holds rows rather than plain text."""
    return path.is_dir() or path.suffix in (".jsonl", ".json", ".parquet")


def read_file(path: Path) -> str:
    """Return a UTF-8 file as it is.

    Raises:
        InvalidInput: it is no such file.
    """
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: not UTF-8 text ({error}); give a .txt, .jsonl or .parquet file") from error


def read_rows(path: Path) -> tuple[Record, ...]:
    """Return all rows, each with its place.

    Raises:
        InvalidInput: unreadable, empty, without a column that is read here, or several splits and none called train.
    """
    if path.suffix in (".jsonl", ".json") and not path.is_dir():
        records, problems = read_records(path)
        refuse(problems)
        return records
    rows = _table(path)
    columns = rows.column_names or []
    kinds = [kind for kind in KINDS if kind in columns]
    if not kinds:
        wanted = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
        raise InvalidInput(f"{path}: has the columns {', '.join(columns)}; needs {wanted}")
    numbered = enumerate(rows.select_columns(kinds), start=1)
    records = tuple(Record(f"{path}, row {number}", fields) for number, fields in numbered)
    if not records:
        raise InvalidInput(f"{path}: is empty; give at least one row")
    return records


def _table(path: Path) -> Dataset | IterableDataset:
    from datasets import load_dataset, load_from_disk

    try:
        if any((path / name).exists() for name in _SAVED):
            loaded = load_from_disk(path)
        elif path.is_dir():
            loaded = load_dataset(str(path), streaming=True)
        else:
            loaded = load_dataset("parquet", data_files=str(path), streaming=True)
    except Exception as error:  # datasets documents no closed set of errors
        raise InvalidInput(f"{path}: not readable as a data set: {first_line(error)}") from error
    if not isinstance(loaded, dict):
        return loaded
    if "train" not in loaded and len(loaded) > 1:
        raise InvalidInput(f"{path}: has the splits {', '.join(loaded)}; give the path of one of them")
    return loaded["train"] if "train" in loaded else next(iter(loaded.values()))
