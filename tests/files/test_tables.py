"""Tables: CSV by any of three delimiters, and Parquet."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset

from caq.errors import InvalidInput
from caq.files.tables import read_csv, read_parquet


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_csv_is_read_by_the_delimiter_of_its_first_line(delimiter: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [("id", "text"), ("1", f'"one{delimiter} ""two"""'), ("2", '"on two\nlines"')]
    path.write_bytes("\ufeff".encode() + end.join(delimiter.join(row) for row in rows).encode())
    table = read_csv(path)
    assert (table.columns, table.problems) == (("id", "text"), ())
    assert [row for _, row in table.rows] == [
        {"id": "1", "text": f'one{delimiter} "two"'},
        {"id": "2", "text": "on two\nlines"},
    ]


def test_rows_that_do_not_fit_and_open_quotes_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,a,b\n2\n3,c\n")
    table = read_csv(path)
    assert [problem.partition(": ")[0] for problem in table.problems] == [f"{path}:2", f"{path}:3"]
    assert table.rows == ((f"{path}:4", {"id": "3", "text": "c"}),)
    path.write_text('text\n"open\n')
    with pytest.raises(InvalidInput, match=r"a\.csv: .*give a UTF-8 CSV"):
        read_csv(path)


def test_parquet_gives_the_columns_that_are_wanted(tmp_path: Path) -> None:
    path = tmp_path / "run [v2]*" / "rows.parquet"
    path.parent.mkdir()
    Dataset.from_dict({"text": ["a", "b"], "id": [1, 2]}).to_parquet(path)
    assert [row for _, row in read_parquet(path).rows] == [{"text": "a", "id": 1}, {"text": "b", "id": 2}]
    some = read_parquet(path, ["text", "messages"])
    assert (some.columns, some.rows[1]) == (("text", "id"), (f"{path}, row 2", {"text": "b"}))
    assert read_parquet(path, ["messages"]).rows == ()
    path.write_bytes(b"PAR1")
    with pytest.raises(InvalidInput, match="not readable as Parquet"):
        read_parquet(path)


def test_a_cell_may_be_longer_than_python_s_default_limit(tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text('text\n"' + "a " * 100_000 + '"\n')
    ((_, row),) = read_csv(tmp_path / "long.csv").rows
    assert len(row["text"]) == 200_000
