"""From what a user types, a local directory or a hub name, to a local directory."""

from __future__ import annotations

from pathlib import Path

from caq.errors import InvalidInput, first_line

#: What is downloaded: never pickles, never code.
_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
#: The same weights again, under names that Transformers does not read; folders hold other formats, as `original/` does.
_IGNORED = ("*/*", "consolidated*", "adapter_model*", "*.fp16.*", "*.fp32.*", "*.bf16.*")


def resolve(name_or_path: str | Path, revision: str | None = None) -> Path:
    """Return the local directory of a model, downloading it from the hub where it is a hub name, or NAME@REVISION.

    `HF_HUB_OFFLINE` and the hub's cache are honoured; a revision is a branch, tag or commit.

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
    name, _, named = str(name_or_path).partition("@")
    return _download(name, revision or named or None)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download

    try:
        directory = snapshot_download(
            name, revision=revision, allow_patterns=list(_PATTERNS), ignore_patterns=list(_IGNORED)
        )
    except (OSError, ValueError) as error:
        offline = " (HF_HUB_OFFLINE is set, so only the cache was searched)" if constants.HF_HUB_OFFLINE else ""
        problem = f"no such local directory, and it cannot be downloaded from the hub{offline}"
        given = name if revision is None else f"{name}@{revision}"
        raise InvalidInput(f"{given}: {problem}: {first_line(error)}") from error
    return Path(directory)
