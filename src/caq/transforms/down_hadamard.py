"""A fixed Hadamard matrix on the down projection's input, computed at run time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from caq.options import Options
from caq.transforms.location import Location
from caq.transforms.spec import Edit, Placed, Subject, reads


class DownHadamard(Options):
    """Mix the channels of each MLP's inner activation; its product of two linears rules out folding it into either."""

    name: Literal["down-hadamard"] = "down-hadamard"
    learnable: ClassVar[bool] = False
    online: ClassVar[frozenset[Location]] = frozenset({Location.INPUT})

    def place(self, subject: Subject) -> Iterator[Placed]:
        """Yield one Hadamard matrix a block, in blocks of a power of two."""
        from caq.transforms.maps.hadamard import Hadamard, online_block

        for index, branches in enumerate(subject.bound.branches):
            for branch in branches:
                if branch.kind == "mlp":
                    name, down = f"block.{index}.down_hadamard", branch.writes
                    edits = (Edit(down, Location.INPUT, name), reads(down, name))
                    yield Placed(name, Hadamard(online_block(down.shape[-1])), {index: edits})
