"""The working directory: the same command goes on, another one is refused, --restart forgets, damage is made good."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from caq.errors import InvalidInput
from caq.workspace import RUN_FILE, Workspace, open_workspace

IDENTITY = {"recipe": "a1", "calibration data": "b2", "aligned model": "c3"}


def begin(output: Path) -> Workspace:
    workspace = open_workspace(output, IDENTITY)
    workspace.fit_state.write({"weight": torch.ones(2)}, "learned")
    workspace.block(1).write({"weight": torch.ones(3)}, "quantized")
    return workspace


def test_it_lies_hidden_beside_the_output(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "deep" / "out", IDENTITY)
    assert workspace.directory == tmp_path.resolve() / "deep" / ".out.work"
    assert not (tmp_path / "deep" / "out").exists()


def test_the_same_run_finds_what_it_left(tmp_path: Path) -> None:
    begin(tmp_path / "out")
    again = open_workspace(tmp_path / "out", dict(reversed(IDENTITY.items())))
    assert again.fit_state.require().note == "learned"
    assert torch.equal(again.block(1).require().tensors["weight"], torch.ones(3))
    assert again.block(0).read() is None


def test_a_changed_run_is_refused_with_every_difference_and_nothing_is_lost(tmp_path: Path) -> None:
    workspace = begin(tmp_path / "out")
    changed = {"recipe": "a9", "calibration data": "b2", "aligned model": "c3", "base model": "d4"}
    with pytest.raises(InvalidInput) as caught:
        open_workspace(tmp_path / "out", changed)
    assert len(caught.value.problems) == 2
    assert "another base model (None, now d4)" in caught.value.problems[0]
    assert "another recipe (a1, now a9)" in caught.value.problems[1]
    assert all("--restart" in problem and str(workspace.directory) in problem for problem in caught.value.problems)
    assert open_workspace(tmp_path / "out", IDENTITY).fit_state.require().note == "learned"


def test_restart_forgets(tmp_path: Path) -> None:
    begin(tmp_path / "out")
    workspace = open_workspace(tmp_path / "out", {"recipe": "a9"}, restart=True)
    assert [path.name for path in workspace.directory.iterdir()] == [RUN_FILE]
    open_workspace(tmp_path / "out", {"recipe": "a9"})
    with pytest.raises(InvalidInput):
        open_workspace(tmp_path / "out", IDENTITY)


def test_two_outputs_have_two_workspaces(tmp_path: Path) -> None:
    begin(tmp_path / "out")
    assert open_workspace(tmp_path / "other", {"recipe": "a9"}).fit_state.read() is None


def test_removing_leaves_the_output_alone(tmp_path: Path) -> None:
    workspace = begin(tmp_path / "out")
    (tmp_path / "out").mkdir()
    workspace.remove()
    workspace.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("content", ["", '{"recipe": "a', "[]", "\x00" * 40])
def test_a_damaged_record_is_named_and_made_again(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = begin(tmp_path / "out").directory / RUN_FILE
    record.write_text(content)
    workspace = open_workspace(tmp_path / "out", IDENTITY)
    assert f"{record}: is damaged" in capsys.readouterr().err
    assert workspace.holds_this_run()
    assert workspace.fit_state.require().note == "learned"


def test_a_block_of_another_run_is_never_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = begin(tmp_path / "other")
    workspace = open_workspace(tmp_path / "out", {**IDENTITY, "recipe": "a9"})
    shutil.copyfile(other.block(1).path, workspace.block(1).path)
    assert workspace.block(1).read() is None
    assert "block-00001.safetensors: belongs to another run" in capsys.readouterr().err


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    workspace = begin(tmp_path / "out")
    (workspace.directory / ".block-00002.safetensors.partial-0a1b2c3d").write_text("half")
    open_workspace(tmp_path / "out", IDENTITY)
    assert sorted(path.name for path in workspace.directory.iterdir()) == [
        "block-00001.safetensors",
        "fit.safetensors",
        RUN_FILE,
    ]
