"""Where the second-order model looks: activations that are rounded or meet rounded weights, with their transforms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from compressed_tensors.quantization import QuantizationArgs
from jaxtyping import Float
from torch import Tensor

from caq.errors import Unsupported
from caq.families import Address, Branch, Norm
from caq.student import Student
from caq.transforms.base import Operator
from caq.transforms.location import Location
from caq.transforms.spec import Edit


@dataclass(frozen=True)
class Place:
    """An activation inside a block.

    Attributes:
        path, location: where it passes, as in `Site`.
        edits: what transforms it, in order.
        format: what it is rounded to; None leaves it whole.
        readers: linears that read it and whose rounded weights count.
    """

    path: str
    location: Location
    edits: tuple[Edit, ...]
    format: QuantizationArgs | None = None
    readers: tuple[Address, ...] = ()

    @property
    def key(self) -> str:
        """Its name in the block."""
        return f"{self.path}/{self.location}"


def places(student: Student, index: int, *, weights: bool) -> tuple[Place, ...]:
    """Return the places of block `index`; those that only weights make count where `weights` do.

    Raises:
        Unsupported: the student rounds where there is no such place.
    """
    formats = {
        (step.path, step.location): step.act
        for step in student.steps
        if step.index in (None, index) and isinstance(step.act, QuantizationArgs)
    }
    found: list[Place] = []
    for branch in student.bound.branches[index]:
        for path, location, edits, linears in _activations(branch, student.plan.edits[index]):
            readers = tuple(linear for linear in linears if linear.quantized) if weights else ()
            rounded = formats.pop((path, location), None)
            if rounded or readers:
                found.append(Place(path, location, edits, rounded, readers))
    if formats:
        where = ", ".join(f"the {location} of {path}" for path, location in formats)
        raise Unsupported(f"learn.local: cannot follow what is rounded at {where}; take local out of learn")
    return tuple(found)


def _activations(
    branch: Branch, edits: Sequence[Edit]
) -> Iterator[tuple[str, Location, tuple[Edit, ...], tuple[Address, ...]]]:
    """Yield path, location, edits and readers of what a branch may round."""
    values, keys = branch.pair("value-output"), branch.pair("query-key")
    yield branch.norm.path, Location.OUTPUT, edits_at(edits, branch.reads[0], Location.WEIGHT_INPUT), branch.reads
    if values is not None:
        yield values.writer.path, Location.OUTPUT, edits_at(edits, values.writer, Location.WEIGHT_OUTPUT), ()
    if keys is not None:
        projected = edits_at(edits, keys.writer, Location.WEIGHT_OUTPUT)
        cached = tuple(edit for edit in edits if edit.location == Location.K_CACHE)
        yield branch.module, Location.K_CACHE, projected + cached, ()
    yield (
        branch.writes.path,
        Location.INPUT,
        edits_at(edits, branch.writes, Location.WEIGHT_INPUT),
        (branch.writes,),
    )


def edits_at(edits: Sequence[Edit], address: Address | Norm, location: Location) -> tuple[Edit, ...]:
    """Return those of one side of one address."""
    return tuple(edit for edit in edits if edit.address == address and edit.location == location)


def transformed(
    x: Float[Tensor, "tokens features"], edits: Sequence[Edit], operators: Mapping[str, Operator]
) -> Float[Tensor, "tokens features"]:
    """Return an activation as the transformed model has it, `x T`."""
    for edit in edits:
        operator = operators[edit.transform]
        x = operator.apply(x) if _is_forward(edit) else operator.apply_inverse_transpose(x)
    return x


def transformed_gradient(
    g: Float[Tensor, "tokens features"], edits: Sequence[Edit], operators: Mapping[str, Operator]
) -> Float[Tensor, "tokens features"]:
    """Return the gradient with respect to the transformed activation, `g T^-T`."""
    for edit in edits:
        operator = operators[edit.transform]
        g = operator.apply_inverse_transpose(g) if _is_forward(edit) else operator.apply(g)
    return g


def _is_forward(edit: Edit) -> bool:
    """Return whether the activation takes T: a reader's weight then takes the inverse."""
    return edit.inverse == (edit.location == Location.WEIGHT_INPUT)
