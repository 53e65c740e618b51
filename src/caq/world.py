"""The processes that share one run: who does which part, and how their sums come together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from caq.errors import InvalidInput, first_line, nearest

Item = TypeVar("Item")
#: What models are run in, by name.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class World:
    """One process among `size`; passed in, never global. More than one need torch's process group.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        device: where this one computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)

    @property
    def first(self) -> bool:
        """Whether this process writes what all share."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's part of items that all processes have in the same order; it may be empty."""
        return items[self.rank :: self.size]

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of all processes' tensors of this shape; alone, the tensor itself."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.size > 1:
            distributed.barrier()


def computed_on(device: torch.device) -> dict[str, str]:
    """Return what moves the last bits of a result besides the inputs: torch's version, its threads, the device."""
    return {"torch": torch.__version__, "threads": str(torch.get_num_threads()), "device": device.type}


def find_dtype(name: str | None) -> torch.dtype | None:
    """Return the dtype of that name, None for None.

    Raises:
        InvalidInput: models are not run in it.
    """
    if name is None:
        return None
    if name not in DTYPES:
        raise InvalidInput(f"{name}: models are not run in it{nearest(name, DTYPES)}")
    return DTYPES[name]


def find_device(given: str | torch.device | None) -> torch.device:
    """Return the device to compute on; None takes CUDA where there is one.

    Raises:
        InvalidInput: no such device, or it cannot be used here.
    """
    name = given or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # Folding needs float64, which not every kind of device has.
        torch.zeros(1, dtype=torch.float64, device=device).item()
    except Exception as error:  # every backend has errors of its own
        raise InvalidInput(f"--device {name}: {first_line(error)}; give cpu or cuda") from error
    return device
