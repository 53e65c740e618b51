"""Observe: what transforms ask to see of activations before they start, from one walk over the calibration data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caq.families import Bound, OwnWeights
from caq.transforms.base import Seen, Statistic
from caq.transforms.location import Location
from caq.transforms.online import Site
from caq.transforms.plan import Plan
from caq.walk import block_arguments, embed, walk

#: How a statistic of some rows joins that of the rows before.
_STATISTICS: Mapping[Statistic, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "absmax": (lambda rows: rows.abs().amax(0), torch.maximum),
    "second-moment": (lambda rows: rows.square().sum(0), torch.add),
}


@torch.no_grad()
def observe(bound: Bound, plan: Plan, ids: Int[Tensor, "samples length"]) -> dict[str, Seen]:
    """Return the statistics that the plan's transforms ask for, by transform; runs nothing if none asks.

    They are of the aligned model's own activations, in full precision: largest absolute value, mean square.
    """
    wanted = {name: module for name, module in (plan.observed or {}).items() if plan.transforms[name].observes}
    if not wanted:
        return {}
    totals: dict[str, dict[Statistic, Float[Tensor, " features"]]] = {name: {} for name in wanted}
    own, device = OwnWeights(bound), bound.embedding.weight.device
    arguments = block_arguments(bound, ids[:1].to(device))
    for sequence in ids:
        hidden = embed(bound, own, sequence[None].to(device))
        walk(bound, own, hidden, arguments, lambda index: _recorders(plan, wanted, totals, index))
    for seen in totals.values():
        if "second-moment" in seen:
            seen["second-moment"] /= ids.numel()
    return dict(totals)


def _recorders(
    plan: Plan, wanted: Mapping[str, tuple[int, str]], totals: Mapping[str, dict[Statistic, Tensor]], index: int
) -> tuple[Site, ...]:
    def record(name: str, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).float()
        for statistic in plan.transforms[name].observes:
            measure, join = _STATISTICS[statistic]
            earlier = totals[name].get(statistic)
            totals[name][statistic] = measure(rows) if earlier is None else join(earlier, measure(rows))
        return x

    here = {name: path for name, (block, path) in wanted.items() if block == index}
    return tuple(Site(path, Location.INPUT, partial(record, name)) for name, path in here.items())
