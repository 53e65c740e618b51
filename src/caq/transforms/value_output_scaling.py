"""`S_ov`: one factor a channel of each KV head, between values and the output projection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from caq.options import Options
from caq.transforms.location import Location
from caq.transforms.spec import Placed, Subject, reads, writes


class ValueOutputScaling(Options):
    """Scale the channels of each head's values, and undo it in the output projection."""

    name: Literal["value-output-scaling"] = "value-output-scaling"
    learnable: ClassVar[bool] = True
    online: ClassVar[frozenset[Location]] = frozenset()

    def place(self, subject: Subject) -> Iterator[Placed]:
        """Yield the scalings of each block's heads as one map."""
        from caq.transforms.maps.scaling import Scaling

        for index, branches in enumerate(subject.bound.branches):
            for branch in branches:
                if pair := branch.pair("value-output"):
                    name = f"block.{index}.value_output_scaling"
                    edits = (writes(pair.writer, name), reads(pair.reader, name))
                    yield Placed(name, Scaling(pair.heads, pair.size), {index: edits})
