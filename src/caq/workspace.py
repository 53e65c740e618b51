"""The directory beside the output that keeps what a run has done, so that the same command goes on after a stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from caq.errors import InvalidInput

RUN_FILE = "run.json"


@dataclass(frozen=True)
class Workspace:
    """One run's working directory: `.{output}.work` beside the output."""

    directory: Path

    @property
    def fit_state(self) -> Path:
        """Where the fit keeps its state."""
        return self.directory / "fit.safetensors"

    @property
    def edges(self) -> Path:
        """Where embedding, final norm and head are kept."""
        return self.directory / "edges.safetensors"

    def block(self, index: int) -> Path:
        """Where a quantized block is kept."""
        return self.directory / f"block-{index:05d}.safetensors"

    def remove(self) -> None:
        """Delete the directory, once its results are in the output."""
        shutil.rmtree(self.directory, ignore_errors=True)


def open_workspace(output: Path, identity: Mapping[str, str], *, restart: bool = False) -> Workspace:
    """Open the workspace of `output`, empty or as the same run left it.

    Args:
        output: the output directory.
        identity: what decides the run's results: hashes of models, data and recipe, and the code's version.
        restart: drop what an earlier run left.

    Raises:
        InvalidInput: an earlier, unfinished run differs; every difference is named.
    """
    output = output.expanduser().resolve()
    directory = output.with_name(f".{output.name}.work")
    if restart:
        shutil.rmtree(directory, ignore_errors=True)
    record = directory / RUN_FILE
    if record.exists():
        _require_same(directory, json.loads(record.read_text(encoding="utf-8")), identity)
    directory.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(dict(identity), indent=2) + "\n", encoding="utf-8")
    return Workspace(directory)


def _require_same(directory: Path, earlier: Mapping[str, str], identity: Mapping[str, str]) -> None:
    changed = [key for key in sorted({*earlier, *identity}) if earlier.get(key) != identity.get(key)]
    if changed:
        raise InvalidInput(
            [
                f"{directory}: holds an unfinished run with another {key} "
                f"({earlier.get(key)}, now {identity.get(key)}); "
                "go on with the old one, give another output, or start over with --restart"
                for key in changed
            ]
        )
