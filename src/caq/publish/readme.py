"""README.md of a checkpoint: put there whole, with its hash, so that `caq verify` still passes."""

from __future__ import annotations

from pathlib import Path

from caq.checkpoint.inspect import read_json
from caq.checkpoint.write import put_text
from caq.comparison.report import Report
from caq.errors import InvalidInput
from caq.export.directory import RECORD_FILE
from caq.loading import RECIPE_FILE
from caq.publish.card import model_card
from caq.publish.origin import origin
from caq.publish.push import CARD
from caq.recipe import Recipe


def write_card(directory: Path, report: Report, arm: str, model: str | Path, base: str | Path | None) -> None:
    """Write a checkpoint's model card from its own files and a comparison.

    Args:
        directory: a checkpoint that CAQ wrote.
        report: the comparison.
        arm: the checkpoint's name in it.
        model: the full-precision model: directory or hub name.
        base: its pre-trained base, or None.

    Raises:
        InvalidInput: the directory is not a checkpoint of CAQ's.
    """
    text = model_card(
        report,
        arm,
        Recipe.from_yaml(directory / RECIPE_FILE),
        read_json(directory / RECORD_FILE),
        read_json(directory / "config.json"),
        origin(model),
        None if base is None else origin(base),
    )
    put_text(directory, CARD, text)


def put_card(directory: Path, source: Path) -> None:
    """Make a Markdown file a checkpoint's model card.

    Raises:
        InvalidInput: the file is not readable text, or the directory is not a checkpoint of CAQ's.
    """
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput([f"{source}: is not readable text ({error}); give a Markdown file"]) from error
    put_text(directory, CARD, text)
