"""Tensors that a run keeps between its stages: read back only by the same run, and only as they were written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from caq.errors import CaqError
from caq.files.whole import whole
from caq.progress import remark

#: The only key of the file's metadata: safetensors writes several in an order of its own, and equal runs must give
#: equal bytes.
_SEAL = "seal"


@dataclass(frozen=True)
class Contents:
    """What a sealed file holds: tensors by name, and a note of plain JSON data."""

    tensors: dict[str, Tensor]
    note: Any


@dataclass(frozen=True)
class SealedFile:
    """A safetensors file that carries its run's identity, a note, and the sha256 of both and of all tensors.

    Attributes:
        path: where it is.
        identity: hash of all that decides the run's results.
    """

    path: Path
    identity: str

    def write(self, tensors: Mapping[str, Tensor], note: object) -> None:
        """Write the file whole."""
        stored = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        seal = {"identity": self.identity, "sha256": _sha256(self.identity, note, stored), "note": note}
        with whole(self.path) as partial:
            save_file(stored, partial, {_SEAL: json.dumps(seal)})

    def read(self) -> Contents | None:
        """Return what was written; None, with a remark, if it was damaged or is another run's, and None if missing."""
        contents, problem = self._open()
        if problem and self.path.exists():
            remark(f"{self.path}: {problem}; it is made again")
        return contents

    def is_intact(self) -> bool:
        """Return whether the file is there as it was written; in silence."""
        return self._open()[0] is not None

    def _open(self) -> tuple[Contents | None, str]:
        """Return what was written, or why it cannot be had."""
        try:
            with safe_open(self.path, framework="pt") as file:
                seal = json.loads(file.metadata()[_SEAL])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the handle itself cannot be iterated)
            intact = seal["sha256"] == _sha256(seal["identity"], seal["note"], tensors)
        except (SafetensorError, OSError, ValueError, LookupError, TypeError):
            intact = False
        if not intact:
            return None, "is damaged"
        if seal["identity"] != self.identity:
            return None, "belongs to another run"
        return Contents(tensors, seal["note"]), ""

    def require(self) -> Contents:
        """Return what was written.

        Raises:
            CaqError: it is not there, or no longer what it was.
        """
        contents = self.read()
        if contents is None:
            raise CaqError(f"{self.path}: does not read back as it was written; check the disk, and run again")
        return contents


def _sha256(identity: str, note: object, tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256(json.dumps([identity, note]).encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
