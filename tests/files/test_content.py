"""What a file holds: its kind by suffix or content, and its text, whichever program saved it."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from caq.errors import InvalidInput
from caq.files import content
from caq.files.content import kind_of, located, read_text
from caq.files.records import read_records

LINES = b'{"text": "a"}\n{"text": "b"}\n'


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "lines"),
        ("A.JSONL", "lines"),
        ("a.ndjson", "lines"),
        ("a.json.gz", "json"),
        ("a.Tsv", "csv"),
        ("a.CSV.GZ", "csv"),
        ("a.Parquet", "parquet"),
    ],
)
def test_a_suffix_says_what_a_file_holds_in_any_case(name: str, kind: str, tmp_path: Path) -> None:
    assert kind_of(tmp_path / name) == kind


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (LINES, "json"),
        (b"\xef\xbb\xbf \n[\n " + LINES, "json"),
        (b"PAR1\x15\x04", "parquet"),
        (b"The cat {sat} on the mat.", "text"),
        (b"{not rows}", "text"),
        (b"", "text"),
    ],
)
@pytest.mark.parametrize("name", ["rows", "rows.txt", "rows.data.gz"])
def test_another_name_leaves_it_to_the_content(data: bytes, kind: str, name: str, tmp_path: Path) -> None:
    assert kind_of(written(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)) == kind


@pytest.mark.parametrize("name", ["rows.ndjson", "ROWS.JSONL", "rows.json", "rows.txt", "rows", "rows.jsonl.gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_rows_are_read_whatever_they_are_called(name: str, mark: bytes, tmp_path: Path) -> None:
    data = mark + LINES.replace(b"\n", b"\r\n")
    path = written(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    records, problems = read_records(path)
    assert ([record.fields for record in records], problems) == ([{"text": "a"}, {"text": "b"}], ())


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    assert read_text(written(tmp_path / "a.txt", b"\xef\xbb\xbf the\r\ncat")) == " the\r\ncat"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("text".encode("utf-16"), "is UTF-16, not UTF-8 text; convert it: iconv -f UTF-16 -t UTF-8"),
        ("text".encode("utf-32"), "is UTF-32"),
        ("text".encode("utf-16-le"), "holds a NUL at character 1"),
        (b"caf\xe9", "not UTF-8 text"),
    ],
)
def test_other_encodings_are_named_with_the_way_out(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_text(written(tmp_path / "a.txt", data))


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in {
        tmp_path / "pipe": "is a pipe or a device",
        Path("/dev/zero"): "is a pipe or a device",
        tmp_path: "is a directory",
        tmp_path / "none": "No such file",
        tmp_path / ("n" * 300): "name too long",
    }.items():
        for read in (read_text, kind_of, read_records):
            with pytest.raises(InvalidInput, match=words):
                read(path)


def test_half_a_compressed_file_and_more_than_memory_holds_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match=r"cannot be read \(Compressed file ended"):
        read_text(written(tmp_path / "a.txt.gz", gzip.compress(LINES)[:-9]))
    monkeypatch.setattr(content, "LARGEST", 3)
    with pytest.raises(InvalidInput, match="give a part of it"):
        read_text(written(tmp_path / "b.txt.gz", gzip.compress(b"0000")))


def test_a_tilde_is_the_home_directory_and_one_of_nobody_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert located("~/a") == Path("/home/somebody/a")
    assert located("~no-such-user/a") == Path("~no-such-user/a")
    assert located("a/~b") == Path("a/~b")
