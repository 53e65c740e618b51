"""Sealed files: what was written comes back bit by bit; anything else is named and does not come back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from caq.errors import CaqError
from caq.files.sealed import SealedFile

TENSORS = {
    "weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "scale": torch.tensor(0.1, dtype=torch.float64),
    "codes": torch.tensor([[7, -8]], dtype=torch.int32),
    "empty": torch.empty(0, 4),
}
NOTE = {"step": 3, "history": [{"loss": 0.1, "pull": math.nan}], "stopped": False}


def test_tensors_and_note_come_back(tmp_path: Path) -> None:
    file = SealedFile(tmp_path / "state.safetensors", "run")
    assert file.read() is None
    file.write(TENSORS, NOTE)
    contents = file.require()
    assert contents.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(contents.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert repr(contents.note) == repr(NOTE)


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    files = [SealedFile(tmp_path / name, "run") for name in ("one", "other")]
    files[0].write(TENSORS, NOTE)
    files[1].write(dict(reversed(TENSORS.items())), NOTE)
    assert files[0].path.read_bytes() == files[1].path.read_bytes()


def test_no_flipped_bit_is_ever_taken(tmp_path: Path) -> None:
    file = SealedFile(tmp_path / "state.safetensors", "run")
    file.write(TENSORS, NOTE)
    content = file.path.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        file.path.write_bytes(flipped)
        contents = file.read()
        # White space around the header is all that may differ.
        assert contents is None or content[place : place + 1].isspace(), place


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_named_and_not_taken(tmp_path: Path, kept: int, capsys: pytest.CaptureFixture[str]) -> None:
    file = SealedFile(tmp_path / "state.safetensors", "run")
    file.write(TENSORS, NOTE)
    file.path.write_bytes(file.path.read_bytes()[:kept])
    assert file.read() is None
    assert f"{file.path}: is damaged; it is made again" in capsys.readouterr().err
    with pytest.raises(CaqError, match="does not read back as it was written"):
        file.require()


def test_a_safetensors_file_without_a_seal_is_not_taken(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, tmp_path / "block.safetensors", {"format": "pt"})
    assert SealedFile(tmp_path / "block.safetensors", "run").read() is None
