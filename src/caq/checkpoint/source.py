"""From what a user types, a local directory or a hub name, to a local directory."""

from __future__ import annotations

from pathlib import Path

from caq.errors import InvalidInput, first_line

#: What is downloaded: never pickles, never code.
_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")


def resolve(name_or_path: str | Path, revision: str | None = None) -> Path:
    """Return the local directory of a model, downloading it from the hub where it is a hub name.

    `HF_HUB_OFFLINE` and the hub's cache are honoured; `revision` is a branch, tag or commit.

    Raises:
        InvalidInput: neither a directory nor a model that can be downloaded, and why.
    """
    local = Path(name_or_path).expanduser()
    if local.is_dir():
        if revision is not None:
            raise InvalidInput(f"{local}: is a local directory, to which revision {revision!r} cannot apply")
        return local.resolve()
    if local.exists():
        raise InvalidInput(f"{local}: is a file; give the directory that holds config.json")
    return _download(str(name_or_path), revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download

    try:
        # Only the top folder: some repositories keep other formats below it.
        directory = snapshot_download(name, revision=revision, allow_patterns=list(_PATTERNS), ignore_patterns=["*/*"])
    except (OSError, ValueError) as error:
        offline = " (HF_HUB_OFFLINE is set, so only the cache was searched)" if constants.HF_HUB_OFFLINE else ""
        problem = f"no such local directory, and it cannot be downloaded from the hub{offline}"
        raise InvalidInput(f"{name}: {problem}: {first_line(error)}") from error
    return Path(directory)
