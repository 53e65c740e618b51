"""Overrides: dotted keys that reach a section's key or, by its name, an entry's option."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from caq.errors import InvalidInput, attempt
from caq.recipe.entries import Registry, as_mapping, own_options, read_entries
from caq.recipe.text import parse_yaml

Registries = Mapping[str, Registry]

#: Characters of an override by which messages name it.
_NAMED = 100


def parse_override(text: str) -> tuple[str, object]:
    """Split ``objective.alpha=0.5`` into the key and its value, read as YAML.

    Raises:
        InvalidInput: no `=`, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InvalidInput(f"{text[:_NAMED]}: an override is written key=value, such as data.samples=64")
    return key.strip(), parse_yaml(f"value: {value}", text[:_NAMED])["value"]


def override(
    values: Mapping[str, Any], overrides: Mapping[str, object], lists: Registries, entries: Registries
) -> tuple[dict[str, Any], list[str]]:
    """Return a recipe's values with overrides in them, and what is wrong with keys that have no place there.

    Whole sections are replaced first, whatever the order. Keys that nothing knows are left for the recipe to refuse.

    Args:
        values: plain data.
        overrides: by key, dotted or not.
        lists, entries: registries of the sections that are lists of entries, and of those that are one.
    """
    whole = {key: value for key, value in overrides.items() if "." not in key}
    result = {**values, **whole}
    for section in entries:
        result[section] = as_mapping(result[section]) or result[section]
    absent: dict[tuple[str, str], dict[str, object]] = {}
    for key, value in overrides.items():
        if key in whole:
            continue
        section, _, option = key.partition(".")
        name, _, own = option.partition(".")
        if section in lists and own and name in lists[section]:
            if not _set_in_list(result, section, name, {own: value}):
                absent.setdefault((section, name), {})[own] = value
        elif isinstance(result.get(section), Mapping):
            result[section] = {**result[section], option: value}
        else:
            result[key] = value
    for section, registry in entries.items():
        given = {key.partition(".")[2] for key in overrides if key.startswith(f"{section}.")}
        # Another entry may have left options that this one lacks.
        result[section] = own_options(result[section], registry, given)
    return result, _absent(absent, values, whole, lists)


def _set_in_list(values: dict[str, Any], section: str, name: str, options: Mapping[str, object]) -> bool:
    """Set options of a list's entries of this name; return whether there are any."""
    if not isinstance(values[section], list | tuple):
        return True
    items = [as_mapping(item) or item for item in values[section]]
    named = [isinstance(item, Mapping) and item.get("name") == name for item in items]
    values[section] = [{**item, **options} if own else item for item, own in zip(items, named, strict=True)]
    return any(named)


def _absent(
    absent: Mapping[tuple[str, str], Mapping[str, object]],
    values: Mapping[str, Any],
    whole: Mapping[str, object],
    lists: Registries,
) -> list[str]:
    """Return what is wrong with options of entries that the recipe does not have."""
    problems: list[str] = []
    for (section, name), options in absent.items():
        if section in whole:
            # Sizes that fit a pair, and a list without their entry: they have no effect, but they must be right.
            former = next((item for item in values[section] if item["name"] == name), {"name": name})
            attempt(problems, partial(read_entries, section, [{**former, **options}], lists[section]))
        else:
            way_out = f"{name} is not in the recipe's {section}; add it, or leave this option out"
            problems += [f"{section}.{name}.{option}: {way_out}" for option in options]
    return problems
