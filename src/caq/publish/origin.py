"""Where a full-precision model came from, and what its own card says that a quantized one must repeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, not re-exported by name

from caq.files.content import located

#: Facts of a model that quantization does not change, by their names in the hub's metadata block.
INHERITED = ("license", "license_name", "license_link", "language")


@dataclass(frozen=True)
class Origin:
    """A model as its quantized copy names it.

    Attributes:
        name: the hub name, without a revision, or a local directory's last part: cards are public, paths are not.
        on_hub: whether it is a hub name.
        metadata: what its card says of `INHERITED`; nothing is guessed.
    """

    name: str
    on_hub: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)


def origin(model: str | Path) -> Origin:
    """Look a model's card up, in its directory or on the hub; without a card, nothing is known of it.

    A directory that is gone has a name and no card.
    """
    local = located(model)
    if local.is_dir():
        return Origin(local.resolve().name, False, _metadata(local / "README.md"))
    # As `checkpoint.source` reads it: NAME@REVISION is the model NAME.
    name, _, revision = str(model).partition("@")
    if not _hub_name(name):
        return Origin(local.name, False)
    return Origin(name, True, _metadata(_hub_card(name, revision or None)))


def _hub_name(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _hub_card(name: str, revision: str | None) -> Path | None:
    try:
        return Path(hf_hub_download(name, "README.md", revision=revision))
    except (OSError, ValueError):
        return None  # Offline and not in the cache, or there is none: the card then says that the licence is not known.


def _metadata(card: Path | None) -> dict[str, Any]:
    if card is None or not card.is_file():
        return {}
    try:
        card_facts = metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {name: card_facts[name] for name in INHERITED if card_facts.get(name)}
