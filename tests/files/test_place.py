"""What is known of a place before anything is written there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from caq.errors import InvalidInput
from caq.files.place import require_directory, require_possible, require_replaceable

CHECKS = [require_directory, require_possible, require_replaceable]
Check = Callable[[Path, str], None]


@pytest.mark.parametrize("check", CHECKS)
def test_a_place_that_can_be_written_passes_and_nothing_is_made(check: Check, tmp_path: Path) -> None:
    check(tmp_path / "new" / "directory", "choose another")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("check", CHECKS)
def test_what_is_in_the_way_is_named_with_the_way_out(check: Check, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    with pytest.raises(InvalidInput, match="/file is a file, no directory; choose another"):
        check(tmp_path / "file" / "below" / "it", "choose another")
    with pytest.raises(InvalidInput, match="/broken is a broken link, no directory; choose another"):
        check(tmp_path / "broken" / "below", "choose another")
    with pytest.raises(InvalidInput, match="holds a null character; choose another"):
        check(tmp_path / "nu\0ll" / "below", "choose another")
    with pytest.raises(InvalidInput, match=r"300 bytes.* choose another"):
        check(tmp_path / ("n" * 300), "choose another")
    with pytest.raises(InvalidInput, match=r"its path has .* choose another"):
        check(tmp_path.joinpath(*("deep/" * 1000).split("/")), "choose another")


def test_a_file_is_no_directory_and_can_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidInput, match="is a file, no directory"):
        require_directory(tmp_path / "file", "choose another")
    require_replaceable(tmp_path / "file", "choose another")


def test_a_name_needs_room_for_what_is_written_beside_it(tmp_path: Path) -> None:
    require_replaceable(tmp_path / ("n" * 237), "choose another")
    with pytest.raises(InvalidInput, match="238 bytes, and with what is written beside it 237 fit"):
        require_replaceable(tmp_path / ("n" * 238), "choose another")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_directory_without_permission_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidInput, match="Permission denied"):
        require_directory(tmp_path / "new", "choose another")
