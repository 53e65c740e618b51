"""Calibration data in a public record: by name, wherever they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from caq.data.blocks import Calibration
from caq.data.named import told_publicly
from caq.recipe.sections import DataRecipe
from caq.runners import RUNNERS


def test_a_file_whose_name_begins_with_a_tilde_is_told_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~nobody.txt").write_text("the door")
    read = Calibration(torch.zeros(1, 2, dtype=torch.int64), {"source": "~nobody.txt"}, ())
    files = told_publicly(read, DataRecipe(text="~nobody.txt")).origin["files"]
    assert isinstance(files, dict)
    assert files["~nobody.txt"]["bytes"] == 8


def test_the_suffix_of_a_gguf_file_is_read_in_any_case() -> None:
    assert all(RUNNERS["llama.cpp"].recognises(name) for name in ("model.gguf", "MODEL.GGUF"))
