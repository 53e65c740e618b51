"""`R_ov`: one rotation for each KV head, between values and the output projection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from caq.options import Options
from caq.transforms.location import Location
from caq.transforms.spec import Placed, Subject, reads, writes


class ValueOutputRotation(Options):
    """Rotate each head's values, and undo it in the output projection; each head starts at a random Hadamard matrix."""

    name: Literal["value-output-rotation"] = "value-output-rotation"
    learnable: ClassVar[bool] = True
    online: ClassVar[frozenset[Location]] = frozenset()

    def place(self, subject: Subject) -> Iterator[Placed]:
        """Yield the rotations of each block's heads as one map."""
        from caq.transforms.maps.hadamard import random_head_rotations
        from caq.transforms.maps.rotation import Rotation

        for index, branches in enumerate(subject.bound.branches):
            for branch in branches:
                if pair := branch.pair("value-output"):
                    name = f"block.{index}.value_output_rotation"
                    starts = random_head_rotations(pair.heads, pair.size, subject.generator)
                    yield Placed(name, Rotation(starts), {index: (writes(pair.writer, name), reads(pair.reader, name))})
