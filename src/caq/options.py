"""Options: a frozen, strict, closed set of settings, whose mistakes are reported all at once. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from caq.errors import InvalidInput, shown

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
            name = cls.model_fields.get("name")
            raise InvalidInput(sentences(error, cls.model_fields, name and name.default)) from error


def sentences(error: ValidationError, known: Iterable[str], owner: str | None = None) -> list[str]:
    """Turn each of pydantic's errors into one sentence that begins with the key.

    Args:
        error: pydantic's.
        known: the keys there are; dotted ones are suggested for a key that is one level too high.
        owner: the entry of a registry that has the keys.
    """
    return [_sentence(detail, list(known), owner) for detail in error.errors()]


def _sentence(detail: Any, known: list[str], owner: str | None) -> str:
    path = ".".join(_quoted(str(part)) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{path}: unknown key{_nearest_key(path, known, owner)}"
    given = detail["input"]
    expected = detail["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if detail["type"] == "model_type":
        expected = "should be a mapping of keys"
    return f"{path}: {expected}, is {shown(given)} ({type(given).__name__})"


def inside(section: str, problems: Iterable[str]) -> Iterator[str]:
    """Yield the sentences about a section's keys, or about the section itself, as the whole's."""
    meant = "unknown key; did you mean "
    whole = (problem.replace(meant, f"{meant}{section}.") for problem in problems)
    return (f"{section}{problem}" if problem.startswith(":") else f"{section}.{problem}" for problem in whole)


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[\w.-]{1,60}", key) else shown(key)


def _nearest_key(word: str, known: list[str], owner: str | None) -> str:
    # A key of a section that is written one level too high is named where it belongs.
    folded = {name.rpartition(".")[2]: name for name in reversed(known)} | {name: name for name in known}
    close = get_close_matches(word.lower(), folded, n=1)
    if close:
        return f"; did you mean {folded[close[0]]}?"
    listed = ", ".join(name for name in known if "." not in name and name != "name")
    return f"; {owner} has {listed or 'no options'}" if owner else f"; known: {listed}"
