"""The checkpoint directory: shards, index, configuration, tokenizer, recipe and record, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from caq.checkpoint.inspect import Checkpoint
from caq.checkpoint.write import atomic_directory, verify, write_hashes
from caq.errors import InvalidInput
from caq.ledger import Entry
from caq.loading import RECIPE_FILE
from caq.recipe import Recipe

RECORD_FILE = "caq.json"
#: Where the record has what decides a checkpoint: hashes of models, data and recipe, and the code's version.
IDENTITY = "identity"


def save_shard(tensors: Mapping[str, Tensor], path: Path, entries: Iterable[Entry] = ()) -> None:
    """Write one shard; it appears whole or not at all."""
    partial = path.with_suffix(".partial")
    # Beside the shard and before it, so that a resumed run's ledger is whole. Not in its metadata: safetensors writes
    # several keys in an order of its own, and equal runs must give equal bytes.
    _write_json([entry.as_dict() for entry in entries], path.with_suffix(".json"))
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, partial, {"format": "pt"})
    os.replace(partial, path)


def shard_entries(path: Path) -> tuple[Entry, ...]:
    """Return the ledger entries that were saved with a shard."""
    entries = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return tuple(Entry(**entry) for entry in entries)


def write_checkpoint(
    output: Path,
    shards: Sequence[Path],
    aligned: Checkpoint,
    quantization: Mapping[str, object],
    recipe: Recipe,
    record: Mapping[str, object],
) -> None:
    """Assemble the checkpoint beside `output` and put it in place.

    Args:
        output: the directory to write.
        shards: files from `save_shard`.
        aligned: the model whose configuration and tokenizer the checkpoint keeps.
        quantization: `quantization_config` of config.json.
        recipe: written as recipe.yaml, from which `caq.load` reinstalls what runs online.
        record: written as caq.json.

    Raises:
        InvalidInput: `output` has files that CAQ did not write.
    """
    with atomic_directory(output) as directory:
        _write_shards(shards, directory)
        # The rotated head is no longer the embedding's transpose.
        config = {**aligned.config, "tie_word_embeddings": False, "quantization_config": quantization}
        _write_json(config, directory / "config.json")
        for name in (*aligned.tokenizer_files, "generation_config.json"):
            if (aligned.path / name).is_file():
                shutil.copyfile(aligned.path / name, directory / name)
        (directory / RECIPE_FILE).write_text(recipe.to_yaml(), encoding="utf-8")
        _write_json(record, directory / RECORD_FILE)
        write_hashes(directory)


def read_record(output: Path, identity: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the record of a checkpoint that is there, whole, with this identity; None if it has to be made."""
    try:
        record: dict[str, Any] = json.loads((output / RECORD_FILE).read_text(encoding="utf-8"))
        same = record[IDENTITY] == dict(identity) and not verify(output)
    except (OSError, ValueError, LookupError, TypeError, InvalidInput):
        return None  # No checkpoint of ours, or a damaged one.
    return record if same else None


def _write_shards(files: Sequence[Path], directory: Path) -> None:
    weight_map: dict[str, str] = {}
    total = 0
    for number, file in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        shutil.copyfile(file, directory / name)
        with safe_open(file, framework="pt") as shard:
            weight_map |= dict.fromkeys(shard.keys(), name)
        total += file.stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(index, directory / "model.safetensors.index.json")


def _write_json(data: object, path: Path) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
