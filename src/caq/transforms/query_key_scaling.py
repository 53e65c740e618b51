"""`S_qk`: one factor for each RoPE pair, up on keys and down on queries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from caq.options import Options
from caq.transforms.location import Location
from caq.transforms.spec import Placed, Subject, writes


class QueryKeyScaling(Options):
    """Scale keys, and queries inversely: in the projections, or in the per-head gains that follow them."""

    name: Literal["query-key-scaling"] = "query-key-scaling"
    learnable: ClassVar[bool] = True
    online: ClassVar[frozenset[Location]] = frozenset()

    def place(self, subject: Subject) -> Iterator[Placed]:
        """Yield the scalings of each block's heads as one map."""
        from caq.transforms.maps.scaling import Scaling

        for index, branches in enumerate(subject.bound.branches):
            for branch in branches:
                if pair := branch.pair("query-key"):
                    name = f"block.{index}.query_key"
                    edits = (writes(pair.reader, name, inverse=True), writes(pair.writer, name))
                    yield Placed(name, Scaling(pair.heads, pair.size, paired=True), {index: edits})
