"""What runs online, stored in the checkpoint as data, so that loading needs neither the recipe nor the family's spec.

`online.json` lists the steps: module, location, block, and the kind and fields of what acts there. Matrices are beside
it, in `online.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from caq.errors import Unsupported
from caq.files.whole import write_json
from caq.transforms.base import Diagonal, Operator, Orthogonal
from caq.transforms.location import Location
from caq.transforms.maps.hadamard import WalshHadamard
from caq.transforms.online import Step, install, sites_of

ONLINE_FILE = "online.json"
MATRICES_FILE = "online.safetensors"
SCHEMA, VERSION = "caq-online", 1
#: Frozen dataclasses whose fields are tensors or plain JSON data, by the kind that is stored.
OPERATORS: dict[str, type[Any]] = {"hadamard": WalshHadamard, "orthogonal": Orthogonal, "diagonal": Diagonal}
#: The kind of a step that rounds, and the fields of its format; all of them are dynamic.
ROUNDING = "rounding"
_ROUNDING_FIELDS = ("num_bits", "type", "symmetric", "strategy", "group_size")


@dataclass(frozen=True)
class Online:
    """What runs online in a model.

    Attributes:
        layers: path of the list of blocks from the causal language model.
        steps: in the order in which they run.
    """

    layers: str
    steps: tuple[Step, ...]


def write_online(directory: Path, online: Online) -> None:
    """Write `online.json`, and `online.safetensors` if a step has a matrix, into a checkpoint.

    Raises:
        Unsupported: the registry has no kind for an operator.
    """
    matrices: dict[str, Tensor] = {}
    steps = []
    for number, step in enumerate(online.steps):
        kind, values = _described(step.act)
        tensors = {f"{number}.{name}": value for name, value in values.items() if isinstance(value, Tensor)}
        # Cloned, because safetensors refuses one tensor under two names, as a shared map has.
        matrices |= {name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in tensors.items()}
        plain = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        place = {"block": step.index, "path": step.path, "location": step.location.value, "inverse": step.inverse}
        steps.append({**place, "kind": kind, "fields": plain})
    if matrices:
        save_file(matrices, directory / MATRICES_FILE, {"format": "pt"})
    write_json(directory / ONLINE_FILE, {"schema": SCHEMA, "version": VERSION, "layers": online.layers, "steps": steps})


def read_online(directory: Path) -> Online | None:
    """Return what `write_online` stored; None if there is no `online.json`.

    Raises:
        Unsupported: a later version wrote it, or it has a kind of step that is unknown.
    """
    file = directory / ONLINE_FILE
    if not file.is_file():
        return None
    stored = json.loads(file.read_text(encoding="utf-8"))
    if (stored["schema"], stored["version"]) != (SCHEMA, VERSION):
        raise Unsupported(
            f"{file}: is {stored['schema']} version {stored['version']}, this CAQ reads {SCHEMA} version {VERSION}; "
            "upgrade CAQ"
        )
    matrices = load_file(directory / MATRICES_FILE) if (directory / MATRICES_FILE).is_file() else {}
    steps = tuple(_step(step, _of_step(matrices, number), file) for number, step in enumerate(stored["steps"]))
    return Online(stored["layers"], steps)


def install_online(model: PreTrainedModel, online: Online) -> None:
    """Hook what runs online onto a model's blocks, for good."""
    for index, block in enumerate(model.get_submodule(online.layers).children()):
        install(block, sites_of(online.steps, index))


def _described(act: Operator | QuantizationArgs) -> tuple[str, dict[str, Any]]:
    if isinstance(act, QuantizationArgs):
        plain = act.model_dump(mode="json")
        return ROUNDING, {name: plain[name] for name in _ROUNDING_FIELDS}
    for kind, operator in OPERATORS.items():
        if type(act) is operator:
            return kind, {field.name: getattr(act, field.name) for field in fields(operator)}
    raise Unsupported(f"a checkpoint has no way to store {type(act).__name__}; it knows {', '.join(OPERATORS)}")


def _of_step(matrices: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    prefix = f"{number}."
    return {name.removeprefix(prefix): tensor for name, tensor in matrices.items() if name.startswith(prefix)}


def _step(stored: Mapping[str, Any], matrices: Mapping[str, torch.Tensor], file: Path) -> Step:
    kind = stored["kind"]
    if kind == ROUNDING:
        act = QuantizationArgs(**stored["fields"], dynamic=True)
    elif kind in OPERATORS:
        act = OPERATORS[kind](**stored["fields"], **matrices)
    else:
        raise Unsupported(f"{file}: has a step of kind {kind!r}, which this CAQ does not know; upgrade it")
    return Step(stored["path"], Location(stored["location"]), act, stored["inverse"], stored["block"])
