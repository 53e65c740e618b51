"""The inputs of a run: both checkpoints and the recipe, checked for everything that needs no compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from caq.checkpoint.inspect import Checkpoint, inspect
from caq.checkpoint.pair import check_pair
from caq.checkpoint.scan import scan
from caq.checkpoint.source import resolve as resolve_source
from caq.errors import InvalidInput, attempt, refuse
from caq.export import format_for
from caq.families import find_family, shape_of
from caq.ledger import Entry
from caq.numerics.scheme import resolve, undivided
from caq.recipe import Recipe

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Pair:
    """The checked inputs of a run.

    Attributes:
        aligned: the aligned model's checkpoint.
        base: its base's, if one was given.
        fingerprints: hashes of their contents, by the same names.
    """

    aligned: Checkpoint
    base: Checkpoint | None
    fingerprints: Mapping[str, str]


def open_pair(model: str | Path, base: str | Path | None) -> Pair:
    """Resolve both checkpoints and check everything about them that needs no compute.

    Raises:
        InvalidInput: every problem of both checkpoints and of their fit.
        Unsupported: no family describes the model.
    """
    problems: list[str] = []
    sources = {"aligned": model} | ({} if base is None else {"base": base})
    opened = {name: attempt(problems, partial(_open, source)) for name, source in sources.items()}
    whole = {name: pair for name, pair in opened.items() if pair is not None}
    refuse(problems)
    aligned = whole["aligned"][0]
    find_family(str(aligned.config.get("model_type")))
    base_checkpoint = whole["base"][0] if "base" in whole else None
    if base_checkpoint is not None:
        check_pair(aligned, base_checkpoint)
    return Pair(aligned, base_checkpoint, {name: fingerprint for name, (_, fingerprint) in whole.items()})


def _open(source: str | Path) -> tuple[Checkpoint, str]:
    checkpoint = inspect(resolve_source(source))
    return checkpoint, scan(checkpoint)


def check_recipe(pair: Pair, recipe: Recipe) -> None:
    """Check that the recipe can be run on the pair.

    Raises:
        InvalidInput: every setting that the models do not allow.
        Unsupported: a scheme that cannot be learned through or loaded, or that the format cannot hold.
    """
    problems = []
    if recipe.needs_base and pair.base is None:
        problems.append(
            f"objective {recipe.objective.name} pushes away from the base model: "
            "give --base, or choose --objective kl-top"
        )
    config = _config(pair.aligned)
    inputs = find_family(config.model_type).inputs(config)
    problems += undivided(recipe.scheme, inputs)
    context, length = getattr(config, "max_position_embeddings", None), recipe.data.length
    if isinstance(context, int) and length > context:
        problems.append(f"data.length: the model reads {context:,} tokens, and {length:,} are asked for; lower it")
    format_for(recipe.format, resolve(recipe.scheme, shape_of(config).head_dim, inputs), recipe.transforms)
    refuse(problems)


def _config(checkpoint: Checkpoint) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True)
        shape_of(config)
        return config
    except Exception as error:  # every family's configuration checks itself in its own way
        told = " ".join(str(error).split())
        raise InvalidInput(f"{checkpoint.path / 'config.json'}: {told}; download it again") from error


def stored_dtype(aligned: Checkpoint) -> torch.dtype:
    """Return the widest dtype in which the checkpoint stores weights."""
    kinds = [DTYPES[name] for name in {tensor.dtype for tensor in aligned.tensors.values()} if name in DTYPES]
    return reduce(torch.promote_types, kinds) if kinds else torch.bfloat16


def compute_dtype(aligned: Checkpoint, recipe: Recipe) -> torch.dtype:
    """Return a dtype that holds the stored weights exactly and is at least what the recipe asks for."""
    return torch.promote_types(stored_dtype(aligned), getattr(torch, recipe.dtype))


def widened(aligned: Checkpoint, recipe: Recipe) -> tuple[Entry, ...]:
    """Return the ledger's entry where `compute_dtype` is not what the recipe asks for; none where it is."""
    dtype = str(compute_dtype(aligned, recipe)).removeprefix("torch.")
    if dtype == recipe.dtype:
        return ()
    message = f"computed in {dtype}, not in {recipe.dtype}, which does not hold the model's weights exactly"
    return (Entry("load", "wider-dtype", message, {"dtype": dtype, "asked": recipe.dtype}),)
