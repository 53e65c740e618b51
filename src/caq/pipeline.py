"""`caq quantize`, told from top to bottom.

check the inputs -> calibration data -> (is the checkpoint there already?) -> teachers' targets -> learn the transforms
-> prove that folding changes nothing -> quantize block by block -> write the checkpoint. Every stage is resumable; what
departs from the recipe is in the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caq.checkpoint.write import owned, require_space
from caq.data.calibration import calibrate
from caq.export.compressed import block_state, quantization_config, stored_weights
from caq.export.directory import IDENTITY, read_record, write_checkpoint
from caq.families import Bound
from caq.files.cache import cache_root, digest
from caq.inputs import Pair, check_recipe, compute_dtype, open_pair, stored_dtype
from caq.ledger import Entry
from caq.loading import load_bound
from caq.numerics.scheme import Numerics, resolve
from caq.objectives import make_objective
from caq.preservation import check_preserved
from caq.progress import progress
from caq.quantizers import make_quantizer
from caq.quantizers.blocks import block_outputs, quantize_block
from caq.recipe import Recipe, preset
from caq.student import Student, block_calls
from caq.train.loop import FitResult, fit
from caq.train.teacher import TeacherCache, cache_hidden, cache_targets
from caq.transforms.apply import cast, fold_block, fold_edges, operators
from caq.transforms.base import Operator
from caq.transforms.online import activation_sites, attention_name, hadamard_sites
from caq.transforms.plan import Plan, make_plan
from caq.workspace import Workspace, open_workspace

#: Brings a full-precision model from its directory.
Load = Callable[[Path, torch.dtype, torch.device], Bound]
#: Tokens on which the folded model is compared with the original.
CHECKED_TOKENS = 64


@dataclass(frozen=True)
class QuantizationResult:
    """What a run left behind.

    Attributes:
        output: the checkpoint's directory.
        fit: the step that was kept and the history of the validation; None if nothing was learned.
        preserved: relative logit difference of the folded, unquantized model.
        ledger: every departure.
        data: what the calibration data are.
        found: whether the checkpoint was there, whole, from an earlier run that nothing distinguishes from this one.
    """

    output: Path
    fit: Mapping[str, object] | None
    preserved: float
    ledger: tuple[Entry, ...]
    data: Mapping[str, object]
    found: bool = False


def quantize(
    model: str | Path,
    base: str | Path | None = None,
    recipe: Recipe | None = None,
    output_dir: str | Path = "caq-out",
    *,
    cache_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    restart: bool = False,
    quiet: bool = False,
) -> QuantizationResult:
    """Quantize an aligned model under an objective that keeps its alignment.

    Args:
        model: the aligned (instruct) model: a local directory or a hub name.
        base: its pre-trained base; needed by contrastive objectives.
        recipe: all settings; None takes the default preset.
        output_dir: where the checkpoint goes; it appears whole or not at all.
        cache_dir: where texts and teacher caches are kept for later runs; None takes `$CAQ_CACHE` or `~/.cache/caq`.
        device: None takes the accelerator if there is one.
        restart: forget what an earlier run of the same output has done.
        quiet: show no progress.

    Raises:
        InvalidInput: bad input; every problem at once, before any compute.
        Unsupported: the model or scheme cannot be handled.
        Diverged: learning found nothing better than the start.
        FunctionChanged: the folded model does not compute what the original computes.
        QuantizationFailed: a layer could not be solved.
    """
    pair = open_pair(model, base)
    return quantize_pair(
        pair,
        recipe or preset("default"),
        Path(output_dir),
        cache_dir=cache_dir,
        device=device,
        restart=restart,
        quiet=quiet,
    )


def quantize_pair(
    pair: Pair,
    recipe: Recipe,
    output_dir: Path,
    *,
    load: Load = load_bound,
    cache_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    restart: bool = False,
    quiet: bool = False,
) -> QuantizationResult:
    """Do what `quantize` does with checkpoints that are opened already, as a grid of recipes on one pair needs.

    `load` brings a full-precision model, which is never changed: a grid can hand out the same one again.
    """
    check_recipe(pair, recipe)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    output = output_dir.expanduser().resolve()
    require_space(output, 2 * pair.aligned.weight_bytes)
    with owned(output):
        dtype = compute_dtype(pair.aligned, recipe)

        root = cache_root(cache_dir)
        computed = digest(pair.fingerprints["aligned"], str(dtype))
        load_aligned = partial(load, pair.aligned.path, dtype, place)
        data = calibrate(pair.aligned, computed, recipe, root, load_aligned, quiet=quiet)
        ids = data.ids
        identity = _identity(pair, recipe, ids)
        earlier = None if restart else read_record(output, identity)
        if earlier is not None:
            if (finished := Workspace(output, identity)).holds_this_run():
                finished.remove()
            return _found(output, earlier)
        workspace = open_workspace(output, identity, restart=restart)

        teacher = _teach(pair, recipe, ids, root / "teachers", dtype, place, load, quiet)
        bound = load(pair.aligned.path, dtype, place)
        numerics = resolve(recipe.scheme, bound.shape.head_dim)
        plan = make_plan(bound, recipe.transforms, seed=recipe.seed)
        student = _student(bound, plan, recipe, numerics)

        fitted = _learn(student, recipe, teacher, ids, workspace, quiet)
        transforms = operators(plan, cast(fitted.parameters if fitted else {}, torch.float64))
        hadamards = hadamard_sites(bound.family, bound.shape, recipe.transforms)
        preserved = check_preserved(student, transforms, hadamards, ids[:1, :CHECKED_TOKENS].to(place))

        quantized = _quantize_blocks(
            student, transforms, recipe, numerics, ids, workspace, stored_dtype(pair.aligned), quiet
        )
        ledger = (*data.entries, *(fitted.entries if fitted else ()), *quantized)
        learned = {"best_step": fitted.best_step, "history": fitted.history} if fitted else None
        result = QuantizationResult(output, learned, preserved, ledger, data.origin)
        _write(result, student, transforms, recipe, numerics, pair, workspace, identity)
        workspace.remove()
        return result


def _teach(
    pair: Pair,
    recipe: Recipe,
    ids: Int[Tensor, "samples length"],
    root: Path,
    dtype: torch.dtype,
    device: torch.device,
    load: Load,
    quiet: bool,
) -> TeacherCache | None:
    """Run each teacher over the calibration data, one at a time, and keep what the objective needs of them."""
    if not recipe.transforms.learn:
        return None
    objective = make_objective(recipe.objective)
    teachers = {"aligned": pair.aligned, "base": pair.base if objective.needs_base else None}
    hidden = {
        name: cache_hidden(
            partial(load, one.path, dtype, device),
            pair.fingerprints[name],
            ids,
            root,
            name=name,
            dtype=dtype,
            quiet=quiet,
        )
        for name, one in teachers.items()
        if one is not None
    }
    return cache_targets(objective, hidden["aligned"], hidden.get("base"), len(ids), root, device=device, quiet=quiet)


def _student(bound: Bound, plan: Plan, recipe: Recipe, numerics: Numerics) -> Student:
    bound.model.set_attn_implementation(attention_name(bound.shape, numerics) or "sdpa")
    sites = (
        *hadamard_sites(bound.family, bound.shape, recipe.transforms),
        *activation_sites(bound.family, numerics),
    )
    weights = numerics.linear.weights if recipe.training.quantize_weights else None
    return Student(bound, plan, sites, weights, recipe.training.gradient_checkpointing)


def _learn(
    student: Student,
    recipe: Recipe,
    teacher: TeacherCache | None,
    ids: Int[Tensor, "samples length"],
    workspace: Workspace,
    quiet: bool,
) -> FitResult | None:
    if teacher is None:
        return None
    return fit(
        student,
        make_objective(recipe.objective),
        teacher,
        ids,
        recipe.training,
        seed=recipe.seed,
        state_file=workspace.fit_state,
        quiet=quiet,
    )


@torch.no_grad()
def _quantize_blocks(
    student: Student,
    transforms: Mapping[str, Operator],
    recipe: Recipe,
    numerics: Numerics,
    ids: Int[Tensor, "samples length"],
    workspace: Workspace,
    stored: torch.dtype,
    quiet: bool,
) -> tuple[Entry, ...]:
    """Quantize and store block after block; each sees what the *stored* blocks before it put out."""
    bound, family = student.bound, student.bound.family
    quantizer = make_quantizer(recipe.quantizer, stored)
    entries: list[Entry] = []
    hidden = _first_hidden(student, transforms, ids[: recipe.quantizer.samples], stored)
    calls = block_calls(bound, ids[:1].to(bound.embedding.weight.device))
    hadamards = hadamard_sites(family, bound.shape, recipe.transforms)
    observed = student if recipe.quantizer.quantized_statistics else replace(student, sites=hadamards)
    with progress(f"quantize: {recipe.quantizer.name}", bound.shape.layers, quiet=quiet) as advance:
        for index in range(bound.shape.layers):
            prefix = f"{family.layers}.{index}."
            contents = workspace.block(index).read()
            if contents is None:
                folded = fold_block(bound, student.plan, index, transforms)
                block = quantize_block(observed, index, folded, hidden, calls, quantizer, numerics.linear.weights)
                named = {prefix + n: tensor for n, tensor in block_state(block, family, numerics, stored).items()}
                workspace.block(index).write(named, [entry.as_dict() for entry in block.entries])
                contents = workspace.block(index).require()
            entries += [Entry(**entry) for entry in contents.note]
            state = {name.removeprefix(prefix): tensor for name, tensor in contents.tensors.items()}
            weights = stored_weights(state, family, numerics)
            device = bound.embedding.weight.device
            hidden = block_outputs(student, index, {n: w.to(device) for n, w in weights.items()}, hidden, calls)
            advance()
    return tuple(entries)


def _first_hidden(
    student: Student,
    transforms: Mapping[str, Operator],
    ids: Int[Tensor, "samples length"],
    stored: torch.dtype,
) -> Float[Tensor, "samples length hidden"]:
    name = f"{student.bound.family.embedding}.weight"
    table = fold_edges(student.bound, student.plan, transforms)[name].to(stored)
    return table[ids.to(table.device)].to(student.bound.embedding.weight.dtype).cpu()


def _write(
    result: QuantizationResult,
    student: Student,
    transforms: Mapping[str, Operator],
    recipe: Recipe,
    numerics: Numerics,
    pair: Pair,
    workspace: Workspace,
    identity: Mapping[str, str],
) -> None:
    bound, stored = student.bound, stored_dtype(pair.aligned)
    edges = {name: tensor.to(stored) for name, tensor in fold_edges(bound, student.plan, transforms).items()}
    workspace.edges.write(edges, [])
    files = [workspace.edges, *(workspace.block(index) for index in range(bound.shape.layers))]
    shards = (file.require().tensors for file in files)
    quantization = quantization_config(bound.family, bound.shape, numerics, recipe.transforms)
    record = _record(result, recipe, pair, identity)
    write_checkpoint(result.output, shards, len(files), pair.aligned, quantization, recipe, record)


def _record(result: QuantizationResult, recipe: Recipe, pair: Pair, identity: Mapping[str, str]) -> dict[str, object]:
    return {
        "caq": version("caq"),
        "recipe_sha256": recipe.fingerprint(),
        "models": {name: {"sha256": sha} for name, sha in pair.fingerprints.items()},
        "data": dict(result.data),
        "preserved": result.preserved,
        "fit": result.fit,
        "ledger": [entry.as_dict() for entry in result.ledger],
        IDENTITY: dict(identity),
    }


def _found(output: Path, record: Mapping[str, Any]) -> QuantizationResult:
    entries = tuple(Entry(**entry) for entry in record["ledger"])
    return QuantizationResult(output, record["fit"], record["preserved"], entries, record["data"], found=True)


def _identity(pair: Pair, recipe: Recipe, ids: Int[Tensor, "samples length"]) -> dict[str, str]:
    return {
        "code version": version("caq"),
        "recipe": recipe.fingerprint(),
        "calibration data": digest(ids.numpy().tobytes()),
        **{f"{name} model": sha for name, sha in pair.fingerprints.items()},
    }
