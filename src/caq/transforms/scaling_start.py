"""The options that say where a scaling starts. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    from caq.numerics.scheme import Numerics
    from caq.transforms.maps.scaling import ScalingStart

Start = Literal["ones", "smooth", "awq"]
Share = Annotated[float, Field(ge=0, le=1)]


def starting(start: Start, smoothing: float, numerics: Numerics) -> ScalingStart | None:
    """Return how the start is found; None where every factor starts at 1."""
    from caq.transforms.maps.starts import ActivationAware, Smooth

    if start == "smooth":
        return Smooth(smoothing)
    return ActivationAware(numerics.linear.weights) if start == "awq" else None
