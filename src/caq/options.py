"""Options: a frozen, strict, closed set of settings, whose mistakes are told all at once. Imports no torch."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from caq.errors import InvalidInput

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Options(BaseModel):
    """Frozen, strict, closed: unknown keys and wrong types raise one `InvalidInput` with all of them."""

    # Strict: "128" for 128 or `yes` for true is a mistake to report, not one to guess about.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return build(values)
        except ValidationError as error:
            raise InvalidInput(sentences(error, cls)) from error


def sentences(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    """Turn each of pydantic's errors about `kind` into one sentence that begins with the key."""
    problems = []
    for detail in error.errors():
        path = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            problems.append(f"{path}: unknown key{_nearest_key(path, kind)}")
            continue
        found = detail["input"]
        expected = detail["msg"].removeprefix("Value error, ").replace("Input should", "should")
        if detail["type"] == "model_type":
            expected = "should be a mapping of keys"
        problems.append(f"{path}: {expected}, is {found!r} ({type(found).__name__})")
    return problems


def _nearest_key(word: str, kind: type[BaseModel]) -> str:
    # A key of a section that is written one level too high is named where it belongs.
    belongs = {name.rpartition(".")[2]: name for name in _keys(kind)}
    close = get_close_matches(word.lower(), belongs, n=1)
    return f"; did you mean {belongs[close[0]]}?" if close else f"; known: {', '.join(kind.model_fields)}"


def _keys(kind: type[BaseModel]) -> list[str]:
    names = []
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += [f"{name}.{inner}" for inner in _keys(field.annotation)]
        names.append(name)
    return names
