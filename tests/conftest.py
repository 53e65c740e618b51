"""The command line in this process, for every test of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from caq import cli
from tests.support.command_line import Caq, Ended

pytest_plugins = ["tests.support.models"]


@pytest.fixture
def caq(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Caq:
    """Return a function that runs `caq` in this process, as its entry point does."""
    monkeypatch.setenv("CAQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # The command sets them, for this test only.
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["caq", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
            sys.exit(0)
        said = capsys.readouterr()
        return Ended(int(ended.value.code or 0), said.out, said.err)

    return run
