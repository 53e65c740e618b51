"""Sealed data: read as they were written, where they belong, or not at all."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from caq.files.seals import SealedObject, seal, unseal

FIELDS = {"text": "ä\u2028\ud800", "numbers": (1, 0.1, math.nan, -math.inf), "nested": {"on": True, "none": None}}


@pytest.fixture
def file(tmp_path: Path) -> SealedObject:
    file = SealedObject(tmp_path / "kept" / "it.json", "this run")
    file.write(FIELDS)
    return file


def test_what_was_written_is_read(file: SealedObject, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = [1, 0.1, "NaN", "-Infinity"]
    assert file.read() == {**FIELDS, "numbers": numbers}
    assert SealedObject(file.path.with_name("nothing"), "this run").read() is None
    assert capsys.readouterr().err == ""


def test_every_bit_counts(file: SealedObject) -> None:
    content = file.path.read_bytes()
    read = file.read()
    for place in range(8 * len(content)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        file.path.write_bytes(changed)
        # A bit that makes one white space of another changes nothing.
        assert file.peek() in (None, read)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"[]", b"3", b'{"seal": null}', b"\xff", b"[" * 100_000])
def test_what_is_no_such_file_is_named_and_not_taken(
    content: bytes, file: SealedObject, capsys: pytest.CaptureFixture[str]
) -> None:
    file.path.write_bytes(content)
    assert file.read() is None
    assert f"{file.path}: is damaged, or of another run; it is made again" in capsys.readouterr().err


def test_what_belongs_elsewhere_is_not_taken(file: SealedObject) -> None:
    assert SealedObject(file.path, "another run").peek() is None
    assert unseal(seal({"row": 1}, "file:1"), "file:1") == {"row": 1}
    assert unseal(seal({"row": 1}, "file:1"), "file:2") is None
