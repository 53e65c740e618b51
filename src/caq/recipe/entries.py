"""Entries of a registry: a name and its own options, `{name: gptq, damping: 0.1}`, or the name alone."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from caq.errors import InvalidInput, attempt, nearest, refuse, shown
from caq.options import Options, inside

Registry = Mapping[str, type[Any]]
Kind = TypeVar("Kind", bound=Options)


class Entry:
    """Marks a field whose value `read_entry` has read: taken as it is, and written with all its options."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema of anything: the registry's own class has validated it."""
        return core_schema.any_schema()


def read_section(section: str, kind: type[Kind], value: object) -> Kind:
    """Return a section's options.

    Raises:
        InvalidInput: what they refuse, as sentences about the recipe's keys.
    """
    try:
        return kind.model_validate(value)
    except InvalidInput as error:
        raise InvalidInput(list(inside(section, error.problems))) from error


def read_entry(section: str, value: object, registry: Registry, default: str) -> Options:
    """Return the options that `value` gives to the entry it names, `default` if it names none.

    Raises:
        InvalidInput: no such name, or the entry refuses its options; all of it.
    """
    options = as_mapping(value)
    if options is None:
        raise InvalidInput(f"{section}: should be a name, or a mapping of keys, {_shown(value)}")
    options.setdefault("name", default)
    return _read(section, f"{section}.name", options, registry)


def read_entries(section: str, value: object, registry: Registry) -> tuple[Options, ...]:
    """Return the options of every entry of a list, in its order.

    Raises:
        InvalidInput: not a list, or what any entry refuses.
    """
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise InvalidInput(f"{section}: should be a list of names, or of mappings with a name, {_shown(value)}")
    problems: list[str] = []
    entries = [attempt(problems, partial(_read_item, section, item, registry)) for item in value]
    refuse(problems)
    return tuple(entry for entry in entries if entry is not None)


def read_set(section: str, value: object, registry: Registry) -> tuple[Options, ...]:
    """Return the options of every entry of a list, each given once, in the registry's order.

    Raises:
        InvalidInput: as `read_entries`; and an entry is given twice.
    """
    entries: list[Any] = list(read_entries(section, value, registry))
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    refuse([f"{section}: {name} is given twice; leave one out" for name in twice])
    return tuple(sorted(entries, key=lambda entry: list(registry).index(entry.name)))


def as_mapping(value: object) -> dict[str, Any] | None:
    """Return an entry's keys; a bare name is short for an entry without options. None if it is neither."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Options):
        return value.model_dump()
    return dict(value) if isinstance(value, Mapping) else None


def own_options(value: Any, registry: Registry, kept: Container[str]) -> Any:
    """Return an entry's value without the options that it does not have, but for those that are kept all the same."""
    entry = as_mapping(value) or {}
    kind = registry.get(str(entry.get("name")))
    if kind is None:
        return value
    return {key: option for key, option in entry.items() if key in kind.model_fields or key in kept}


def _read_item(section: str, item: object, registry: Registry) -> Options:
    options = as_mapping(item)
    if options is None or "name" not in options:
        raise InvalidInput(f"{section}: an entry is a name, or a mapping with a name, {_shown(item)}")
    name = options["name"]
    return _read(f"{section}.{name if isinstance(name, str) else shown(name)}", section, options, registry)


def _read(section: str, named_by: str, options: Mapping[str, Any], registry: Registry) -> Options:
    name = options["name"]
    if isinstance(name, str) and name in registry:
        entry: Options = read_section(section, registry[name], options)
        return entry
    likely_meant = nearest(name if isinstance(name, str) else shown(name), registry)
    problems = [f"{named_by}: {shown(name)} is unknown{likely_meant}"]
    # The other mistakes are reported too, checked against the entry that has most of these options.
    likely = max(registry, key=lambda known: len(registry[known].model_fields.keys() & options.keys()))
    attempt(problems, lambda: read_section(section, registry[likely], {**options, "name": likely}))
    raise InvalidInput(problems)


def _shown(value: object) -> str:
    return f"is {shown(value)} ({type(value).__name__})"
