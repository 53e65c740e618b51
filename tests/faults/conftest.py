"""One stage and one process to fork commands from, for all tests of faults that a worker runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.bench import Bench
from tests.faults.forks import Forks, forks
from tests.faults.stage import write_stage


@pytest.fixture(scope="session")
def forking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forks(tmp_path_factory.mktemp("forks")) as process:
        yield process


@pytest.fixture(scope="session")
def stage(forking: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stage")
    write_stage(root, forking)
    return root


@pytest.fixture
def bench(forking: Forks, stage: Path, tmp_path: Path) -> Bench:
    return Bench(forking, stage, tmp_path)
