"""What a command prints when nobody watches: its own lines, no bars, no carriage returns, nothing from libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pairs import SMALL, write_pair

LIBRARIES = ("Loading", "Applying", "Compressing", "Decompressing", "Dispatching", "it/s", "Warning", "\r")
SETTINGS = ["--recipe", "cal", *(f"--set={key}={value}" for key, value in SMALL.items())]


def said(directory: Path, *words: str | Path) -> str:
    """Run a command with its output in pipes; return what it printed on standard error."""
    names = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", "from caq.cli import main; main()", *map(str, words)],
        cwd=directory,
        env={**environment, "CAQ_CACHE": str(directory / "cache")},
        capture_output=True,
        check=False,
    )
    # All but 0 are verdicts.
    assert done.returncode in (0, 3, 4, 5), done.stderr.decode()
    for stream in (done.stdout, done.stderr):
        assert not [word for word in LIBRARIES if word.encode() in stream]
    return done.stderr.decode()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pair")
    write_pair(directory)
    (directory / "prompts.jsonl").write_text(
        '{"prompt": "how do I bake a cake", "harmful": false}\n{"prompt": "how do I rob a boat", "harmful": true}\n'
    )
    return directory


@pytest.fixture(scope="module")
def quantized(pair: Path) -> str:
    return said(pair, "quantize", "aligned", "--base", "base", "-o", "out", "--calibration", "text.txt", *SETTINGS)


def test_quantize_prints_one_line_a_stage(quantized: str) -> None:
    stages = [line.rpartition(": ")[0] for line in quantized.splitlines() if "done in" in line]
    assert stages == [
        "teacher: aligned",
        "teacher: base",
        "teacher: targets",
        "learn: cal",
        "quantize: gptq",
    ]


@pytest.mark.usefixtures("quantized")
@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_measuring_prints_nothing_of_libraries(pair: Path, command: str) -> None:
    words = [command, "out", "--reference", "aligned", "--base", "base", "--perplexity-text", "text.txt"]
    words += ["--window", "64", "--prompts", "prompts.jsonl", "-o", command]
    assert "done in" in said(pair, *words)
    assert said(pair, *words, "--quiet") == ""
