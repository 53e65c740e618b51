"""The working directory: the same command goes on, another one is refused, --restart forgets."""

from __future__ import annotations

from pathlib import Path

import pytest

from caq.errors import InvalidInput
from caq.workspace import Workspace, open_workspace

IDENTITY = {"recipe": "a1", "calibration data": "b2", "aligned model": "c3"}


def begin(output: Path) -> Workspace:
    workspace = open_workspace(output, IDENTITY)
    workspace.fit_state.write_text("learned")
    workspace.block(1).write_text("quantized")
    return workspace


def test_it_lies_hidden_beside_the_output(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "deep" / "out", IDENTITY)
    assert workspace.directory == tmp_path.resolve() / "deep" / ".out.work"
    assert not (tmp_path / "deep" / "out").exists()


def test_the_same_run_finds_what_it_left(tmp_path: Path) -> None:
    begin(tmp_path / "out")
    again = open_workspace(tmp_path / "out", dict(reversed(IDENTITY.items())))
    assert again.fit_state.read_text() == "learned"
    assert again.block(1).read_text() == "quantized"
    assert not again.block(0).exists()


def test_a_changed_run_is_refused_with_every_difference_and_nothing_is_lost(tmp_path: Path) -> None:
    workspace = begin(tmp_path / "out")
    changed = {"recipe": "a9", "calibration data": "b2", "aligned model": "c3", "base model": "d4"}
    with pytest.raises(InvalidInput) as caught:
        open_workspace(tmp_path / "out", changed)
    assert len(caught.value.problems) == 2
    assert "another base model (None, now d4)" in caught.value.problems[0]
    assert "another recipe (a1, now a9)" in caught.value.problems[1]
    assert all("--restart" in problem and str(workspace.directory) in problem for problem in caught.value.problems)
    assert open_workspace(tmp_path / "out", IDENTITY).fit_state.read_text() == "learned"


def test_restart_forgets(tmp_path: Path) -> None:
    begin(tmp_path / "out")
    workspace = open_workspace(tmp_path / "out", {"recipe": "a9"}, restart=True)
    assert not workspace.fit_state.exists()
    assert not workspace.block(1).exists()
    open_workspace(tmp_path / "out", {"recipe": "a9"})
    with pytest.raises(InvalidInput):
        open_workspace(tmp_path / "out", IDENTITY)


def test_two_outputs_have_two_workspaces(tmp_path: Path) -> None:
    begin(tmp_path / "out")
    assert not open_workspace(tmp_path / "other", {"recipe": "a9"}).fit_state.exists()


def test_removing_leaves_the_output_alone(tmp_path: Path) -> None:
    workspace = begin(tmp_path / "out")
    (tmp_path / "out").mkdir()
    workspace.remove()
    workspace.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
