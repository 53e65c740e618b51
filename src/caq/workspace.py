"""The directory beside the output that keeps what a run has done, so that the same command resumes after a stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from caq.errors import OtherRun
from caq.files.cache import digest
from caq.files.sealed import SealedFile
from caq.files.seals import SealedObject
from caq.files.whole import partial_name, sweep_directory

RUN_FILE = "run.json"


@dataclass(frozen=True)
class Workspace:
    """One run's working directory: `.{output}.work` beside the output, for the process that holds the output.

    Attributes:
        output: the output directory, absolute.
        identity: what decides the run's results: hashes of models, data and recipe, and the code's version.
        conditions: under which the same machine gives the same bytes: a run that goes on under others is no run's.
    """

    output: Path
    identity: Mapping[str, str]
    conditions: Mapping[str, str] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Where the run keeps what it has done."""
        return self.output.with_name(f".{self.output.name}.work")

    @property
    def fit_state(self) -> SealedFile:
        """Where the fit keeps its state."""
        return self._sealed("fit")

    @property
    def refined_fit_state(self) -> SealedFile:
        """Where the fit after rounding keeps its state."""
        return self._sealed("refined-fit")

    @property
    def outer(self) -> SealedFile:
        """Where embedding, final norm and head are kept."""
        return self._sealed("outer")

    def block(self, index: int) -> SealedFile:
        """Where a quantized block is kept."""
        return self._sealed(f"block-{index:05d}")

    def refined_block(self, index: int) -> SealedFile:
        """Where a quantized block is kept as what was learned after rounding has left it."""
        return self._sealed(f"refined-{index:05d}")

    @property
    def record(self) -> dict[str, str]:
        """What says whose the directory is."""
        return {**self.identity, **self.conditions}

    def holds_this_run(self) -> bool:
        """Return whether the directory is this run's, under whatever conditions."""
        return dict(self.identity).items() <= (_record(self.directory).peek() or {}).items()

    @property
    def is_empty(self) -> bool:
        """Whether the run has kept nothing yet."""
        return {path.name for path in self.directory.glob("*")} <= {RUN_FILE}

    @property
    def size(self) -> int:
        """Bytes of what the directory holds."""
        return sum(path.stat().st_size for path in self.directory.rglob("*") if path.is_file())

    def remove(self) -> None:
        """Delete the directory; it is never seen half deleted."""
        if self.directory.exists():
            aside = partial_name(self.output)
            self.directory.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)

    def _sealed(self, name: str) -> SealedFile:
        identity = digest(json.dumps(self.record, sort_keys=True))
        return SealedFile(self.directory / f"{name}.safetensors", identity)


def open_workspace(
    output: Path, identity: Mapping[str, str], conditions: Mapping[str, str] | None = None, *, restart: bool = False
) -> Workspace:
    """Open the workspace of `output`, empty or as the same run left it.

    Args:
        output: the output directory.
        identity: what decides the run's results.
        conditions: under which they have the same bytes.
        restart: drop what an earlier run left.

    Raises:
        OtherRun: an earlier, unfinished run differs; every difference is named.
    """
    workspace = Workspace(output.resolve(), identity, conditions or {})
    if restart:
        workspace.remove()
    record = _record(workspace.directory)
    earlier = record.read()
    if earlier is not None:
        _require_same(workspace.directory, earlier, workspace.record)
    record.write(workspace.record)
    sweep_directory(workspace.directory)
    return workspace


def _record(directory: Path) -> SealedObject:
    """Return the file that says whose a workspace is; damaged, it says nothing, and the others tell by themselves."""
    return SealedObject(directory / RUN_FILE, RUN_FILE)


def _require_same(directory: Path, earlier: Mapping[str, str], identity: Mapping[str, str]) -> None:
    changed = [key for key in sorted({*earlier, *identity}) if earlier.get(key) != identity.get(key)]
    told = [f"{key} ({earlier.get(key)}, now {identity.get(key)})" for key in changed]
    start, way_out = "holds an unfinished run with another", "finish that run, give another output, or use --restart"
    if changed:
        raise OtherRun([f"{directory}: {start} {difference}; {way_out}" for difference in told])
