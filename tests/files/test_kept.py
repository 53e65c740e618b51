"""The cache is listed and cleared: what was used last stays longest, and what a run holds or others wrote stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from caq.files.kept import clear, entries, to_clear, used
from caq.files.lock import Hold, turn
from tests.support.command_line import Caq

KEY = "0123456789abcdef0123"
DAY = 86_400


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache of five entries, used 1, 2, 3, 4 and 5 days ago, among files of others."""
    ours = {
        f"teachers/hidden-{KEY}/00000.safetensors": 1,
        f"teachers/targets-{KEY}/00000.safetensors": 2,
        f"responses/{KEY}/00000.json": 3,
        "texts/wikitext2.json": 4,
        f"probes/{KEY}.json": 5,
    }
    others = ("teachers/mine/00000.safetensors", f"teachers/hidden-{KEY}/notes.txt", "else/00000.json", "own.txt")
    for name in (*ours, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1000))
    for name, days in ours.items():
        path, ago = tmp_path / name, time.time() - days * DAY
        os.utime(path, (ago, ago))
        if path.parent.name not in ("texts", "probes"):
            os.utime(path.parent, (ago, ago))
    return tmp_path


def names(root: Path) -> list[str]:
    return [f"{entry.kind} {entry.path.name[:6]} {entry.size}" for entry in entries(root)]


def test_what_caq_keeps_is_listed_the_least_recently_used_first(root: Path) -> None:
    listed = [
        "probes 012345 1000",
        "texts wikite 1000",
        "responses 012345 1000",
        "teachers target 1000",
        "teachers hidden 1000",
    ]
    assert names(root) == listed
    used(root / "responses" / KEY)
    assert names(root) == [*listed[:2], *listed[3:], listed[2]]
    assert entries(root / "nothing") == ()


def test_age_and_size_choose_what_goes(root: Path) -> None:
    kept = entries(root)
    assert to_clear(kept) == kept
    assert to_clear(kept, before=time.time() - 2.5 * DAY) == kept[:3]
    assert to_clear(kept, keep=1500) == kept[:4]
    assert to_clear(kept, before=time.time() - 2.5 * DAY, keep=1500) == kept[:4]
    assert to_clear(kept, keep=5000) == ()


def test_what_others_wrote_stays(root: Path) -> None:
    before = {path for path in root.rglob("*") if path.is_file()}
    assert all(clear(entry) for entry in entries(root))
    left = {path for path in root.rglob("*") if path.is_file()}
    assert len(before - left) == 5
    assert {path.name for path in left} == {"00000.safetensors", "notes.txt", "00000.json", "own.txt"}
    assert not (root / "responses" / KEY).exists()
    assert entries(root) == ()


def test_what_a_run_holds_stays(root: Path) -> None:
    _, text, response, *_ = entries(root)
    with turn(response.path):
        assert not clear(response)
    hold = Hold(response.path)
    assert not clear(response)
    del hold
    assert clear(response)
    assert clear(text)


def test_the_command_lists_and_deletes_only_when_told(root: Path, caq: Caq) -> None:
    listed = caq("cache", "--cache", root)
    assert listed.out.splitlines()[0].split()[-1] == f"probes/{KEY}.json"
    assert listed.out.splitlines()[-1] == f"{root}: 5 entries, 5.0 KB"
    shown = caq("cache", "clear", "--cache", root, "--older-than", "60h")
    assert shown.out.splitlines()[-1] == "nothing was deleted; to delete 3 entries, 3.0 KB, add --yes"
    assert len(entries(root)) == 5
    assert caq("cache", "clear", "--cache", root, "--older-than", "60h", "--yes").out == "deleted 3 entries, 3.0 KB\n"
    assert caq("cache", "--cache", root, "clear", "--keep", "1KB", "--yes").out == "deleted 1 entry, 1.0 KB\n"
    assert len(entries(root)) == 1
    for wrong in (["--older-than", "long"], ["--keep", "much"], ["--keep", "-1"], ["--keep", "9" * 400]):
        refused = caq("cache", "clear", "--cache", root, *wrong, "--yes")
        assert refused.status == 2
        assert "should be a number and a unit, such as" in refused.err
    assert caq("cache", "--cache", root / "own.txt").status == 2
