"""`S_updown`: one factor a channel between the up and the down projection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from caq.options import Options
from caq.transforms.location import Location
from caq.transforms.spec import Placed, Subject, reads, writes


class UpDownScaling(Options):
    """Scale what the up projection puts out, and undo it in the down projection."""

    name: Literal["up-down-scaling"] = "up-down-scaling"
    learnable: ClassVar[bool] = True
    online: ClassVar[frozenset[Location]] = frozenset()

    def place(self, subject: Subject) -> Iterator[Placed]:
        """Yield one scaling a block."""
        from caq.transforms.maps.scaling import Scaling

        for index, branches in enumerate(subject.bound.branches):
            for branch in branches:
                if pair := branch.pair("up-down"):
                    name = f"block.{index}.up_down"
                    edits = (writes(pair.writer, name), reads(pair.reader, name))
                    yield Placed(name, Scaling(pair.heads, pair.size), {index: edits})
