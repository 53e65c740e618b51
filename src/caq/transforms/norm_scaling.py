"""`S_attn`, `S_ffn`: one factor a channel between each norm and what reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from caq.options import Options
from caq.transforms.spec import Placed, Subject, nowhere, reads, writes


class NormScaling(Options):
    """Scale the channels of a norm's output, and undo it in the linears that read them."""

    name: Literal["norm-scaling"] = "norm-scaling"
    learnable: ClassVar[bool] = True
    online = staticmethod(nowhere)

    def place(self, subject: Subject) -> Iterator[Placed]:
        """Yield one scaling for each branch of each block."""
        from caq.transforms.maps.scaling import Scaling

        for index, branch in subject.bound.all_branches():
            name = f"block.{index}.{branch.kind}_input"
            edits = (*(reads(address, name) for address in branch.reads), writes(branch.norm, name))
            yield Placed(name, Scaling(1, branch.norm.size), {index: edits})
