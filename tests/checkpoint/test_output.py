from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from caq.checkpoint.output import find_output, require_ours
from caq.errors import InvalidInput
from tests.checkpoint.filled import fill


def below_a_file(root: Path) -> Path:
    (root / "file").write_text("")
    return root / "file" / "out"


def a_file(root: Path) -> Path:
    (root / "file").write_text("")
    return root / "file"


def a_broken_link(root: Path) -> Path:
    (root / "out").symlink_to(root / "unmounted")
    return root / "out"


def a_place_of_ours_taken(root: Path) -> Path:
    (root / ".out.work").write_text("")
    return root / "out"


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "below a file": (below_a_file, "file is a file, no directory"),
    "a file": (a_file, "file: is a file; choose a new directory"),
    "a broken link": (a_broken_link, "is a link to .*unmounted, which is not there"),
    "a mount": (lambda _: Path("/proc"), "/proc: is a mount"),
    "the root": (lambda _: Path("/"), "/: is a mount"),
    "a name of 243 bytes": (lambda root: root / ("n" * 243), "its name has 243 bytes, and with what is written beside"),
    "a name of 84 letters": (lambda root: root / ("\u20ac" * 84), "its name has 252 bytes"),
    "a file where the work goes": (a_place_of_ours_taken, r"\.out\.work: is a file where a run keeps a directory"),
    "the model": (lambda root: root / "model", "model: is the aligned model itself"),
    "inside of the model": (lambda root: root / "model" / "w4", "w4: lies inside of the aligned model"),
    "around the model": (lambda root: root, "would take the place of the aligned model"),
}


@pytest.mark.parametrize("place", REFUSED)
def test_a_place_where_no_output_can_go_is_named_before_anything_is_made(place: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    given, message = REFUSED[place]
    target = given(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidInput, match=message):
        find_output(target, {"the aligned model": tmp_path / "model"})
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_to_a_directory_means_the_directory(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    assert find_output(tmp_path / "link", {}) == tmp_path / "disk"
    assert find_output(tmp_path / "link" / "new" / "out", {}) == tmp_path / "disk" / "new" / "out"
    with pytest.raises(InvalidInput, match="is the cache itself"):
        find_output(tmp_path / "link", {"the cache": tmp_path / "disk"})


def test_all_that_keeps_an_output_from_a_place_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    (tmp_path / ".out.previous").write_text("")
    with pytest.raises(InvalidInput) as refused:
        find_output(tmp_path / "out", {"the cache": tmp_path / "out"})
    assert len(refused.value.problems) == 3


@pytest.mark.parametrize("kind", ["file", "link", "hidden", "deep"])
def test_whatever_lies_in_a_directory_is_somebodys(kind: str, tmp_path: Path) -> None:
    names = {"file": "thesis.tex", "link": "to", "hidden": ".env", "deep": "a/b/c"}
    path = tmp_path / names[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    os.symlink("nowhere", path) if kind == "link" else path.write_text("")
    with pytest.raises(InvalidInput, match=f"did not write and would delete: {names[kind]}; choose a new or empty"):
        require_ours(tmp_path)


def test_an_edited_file_of_a_checkpoint_is_not_replaced_and_a_damaged_shard_is(tmp_path: Path) -> None:
    fill(tmp_path, "abc")
    (tmp_path / "model.safetensors").write_text("abd")
    require_ours(tmp_path)
    (tmp_path / "recipe.yaml").write_text("seed: 3")
    with pytest.raises(
        InvalidInput, match=r"would delete: recipe\.yaml; move them elsewhere, or choose another output"
    ):
        require_ours(tmp_path)


def test_only_the_first_of_many_files_are_named(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number:03d}").write_text("")
    with pytest.raises(InvalidInput, match="000, 001, 002, 003, 004 and 295 more;"):
        require_ours(tmp_path)
