"""From what a user types, a local directory or a hub name, to a local directory."""

from __future__ import annotations

from pathlib import Path

from caq.errors import InvalidInput, first_line

#: What is downloaded: never pickles, never code.
_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")


def resolve(name_or_path: str | Path, revision: str | None = None) -> Path:
    """Return the local directory of a model, downloading it from the hub where it is a hub name.

    Args:
        name_or_path: a directory, or `owner/name` on the hub (`HF_HUB_OFFLINE` and the cache are honoured).
        revision: branch, tag or commit on the hub.

    Raises:
        InvalidInput: neither a directory nor a model that can be had, and why.
    """
    local = Path(name_or_path).expanduser()
    if local.is_dir():
        if revision is not None:
            raise InvalidInput([f"{local}: is a local directory, to which revision {revision!r} cannot apply"])
        return local.resolve()
    if local.exists():
        raise InvalidInput([f"{local}: is a file; give the directory that holds config.json"])
    return _download(str(name_or_path), revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download

    try:
        # Only the top folder: some repositories keep other formats below it.
        directory = snapshot_download(name, revision=revision, allow_patterns=list(_PATTERNS), ignore_patterns=["*/*"])
    except (OSError, ValueError) as error:
        offline = " (HF_HUB_OFFLINE is set, so only the cache was searched)" if constants.HF_HUB_OFFLINE else ""
        raise InvalidInput(
            [f"{name}: no such local directory, and the hub does not give it{offline}: {first_line(error)}"]
        ) from error
    return Path(directory)
