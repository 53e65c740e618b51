from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from caq.pipeline import quantize
from caq.recipe import preset
from tests.support.pairs import SMALL, write_pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a tiny pair and `text.txt`."""
    root = tmp_path_factory.mktemp("pair")
    write_pair(root)
    return root


@pytest.fixture(scope="session")
def quantized(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint that is not to be changed."""
    root = tmp_path_factory.mktemp("quantized")
    settings = {**SMALL, "data.text": str(pair / "text.txt"), "objective.name": "kl-top"}
    recipe = preset("cal").with_overrides(settings)
    quantize(pair / "aligned", None, recipe, root / "out", cache_dir=root / "cache", quiet=True)
    return root / "out"


@pytest.fixture
def checkpoint(quantized: Path, tmp_path: Path) -> Path:
    """Return a copy of the checkpoint."""
    return Path(shutil.copytree(quantized, tmp_path / "checkpoint"))
