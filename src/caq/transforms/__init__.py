"""Function-preserving transforms: one file and one line each. Imports no torch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from caq.options import Options


class ResidualRotation(Options):
    name: Literal["residual-rotation"] = "residual-rotation"
    start: Literal["womi", "hadamard"] = "womi"
    learnable: ClassVar[bool] = True


def _plain(name: str, learnable: bool) -> type[Any]:
    from pydantic import create_model

    kind = create_model(name, __base__=Options, name=(Literal[name], name))
    kind.learnable = learnable
    return kind


TRANSFORMS: dict[str, type[Any]] = {
    "residual-rotation": ResidualRotation,
    "norm-scaling": _plain("norm-scaling", True),
    "value-output-rotation": _plain("value-output-rotation", True),
    "value-output-scaling": _plain("value-output-scaling", True),
    "query-key-scaling": _plain("query-key-scaling", True),
    "up-down-scaling": _plain("up-down-scaling", True),
    "down-hadamard": _plain("down-hadamard", False),
    "key-hadamard": _plain("key-hadamard", False),
}
