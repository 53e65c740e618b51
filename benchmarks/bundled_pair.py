"""Wall time and peak memory of `caq quantize` on the bundled pair, and the time of a step under KL-Top and CAL.

    .venv/bin/python benchmarks/bundled_pair.py

Steps of the two objectives alternate, so that what else the machine does slows both alike; medians are printed.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from caq.data import token_blocks
from caq.loading import load_bound, load_tokenizer
from caq.numerics.scheme import resolve
from caq.objectives import make_objective
from caq.recipe import Recipe
from caq.reproduce.pairs import bundled, recipe_for
from caq.student import Student
from caq.train.loop import fit
from caq.train.teacher import cache_hidden, cache_targets
from caq.transforms.online import activation_sites, hadamard_sites
from caq.transforms.plan import make_plan

ROUNDS = 12
STEPS = 4


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        recipe = recipe_for(bundled(directory / "pair"), "default")
        seconds, peak = whole_run(directory, recipe)
        print(f"caq quantize, CAL, {recipe.training.steps} steps: {seconds:.1f} s, peak memory {peak:.2f} GB")
        times = step_times(directory, recipe)
        for name, values in times.items():
            print(f"{name}: {statistics.median(values):.3f} s a step ({len(values)} rounds of {STEPS})")
        ratio = statistics.median(a / b for a, b in zip(times["cal"], times["kl-top"], strict=True))
        print(f"CAL / KL-Top: {ratio:.3f} (median of paired rounds), {torch.get_num_threads()} threads")


def whole_run(directory: Path, recipe: Recipe) -> tuple[float, float]:
    """Return seconds and peak GB of the command in a process of its own."""
    path = directory / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    pair, out = directory / "pair", directory / "out"
    command = ["quantize", str(pair / "aligned"), "--base", str(pair / "base")]
    command += ["--recipe", str(path), "-o", str(out), "--cache", str(directory / "cache"), "--quiet"]
    started = time.monotonic()
    subprocess.run([Path(sys.executable).with_name("caq"), *command], check=True, capture_output=True)
    return time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6


def step_times(directory: Path, recipe: Recipe) -> dict[str, list[float]]:
    """Return seconds a step, per round, by objective."""
    pair, cpu = directory / "pair", torch.device("cpu")
    tokenizer = load_tokenizer(pair / "aligned")
    ids = token_blocks(recipe.data, tokenizer, 0).ids
    hidden = {
        name: cache_hidden(
            partial(load_bound, pair / name, torch.float32, cpu),
            name,
            ids,
            directory,
            name=name,
            dtype=torch.float32,
            quiet=True,
        )
        for name in ("aligned", "base")
    }
    bound = load_bound(pair / "aligned", torch.float32, cpu)
    sites = (
        *hadamard_sites(bound.family, bound.shape, recipe.transforms),
        *activation_sites(bound.family, resolve(recipe.scheme, bound.shape.head_dim)),
    )
    student = Student(bound, make_plan(bound, recipe.transforms, seed=0), sites, checkpointing=False)
    lessons = {}
    for name in ("kl-top", "cal"):
        objective = make_objective(recipe.with_overrides({"objective.name": name}).objective)
        teacher = cache_targets(
            objective, hidden["aligned"], hidden["base"], len(ids), directory, device=cpu, quiet=True
        )
        lessons[name] = objective, teacher
    # A few steps need not be better than the start, and are timed all the same.
    # A validation pass costs the same under both objectives and is no step: one sequence, at start and end only.
    settings = recipe.training.model_copy(
        update={"steps": STEPS, "evaluate_every": STEPS, "validation_samples": 1, "keep": "last"}
    )
    times: dict[str, list[float]] = {name: [] for name in lessons}
    for _ in range(ROUNDS):
        for name, (objective, teacher) in lessons.items():
            started = time.perf_counter()
            fit(student, objective, teacher, ids, settings, seed=0, quiet=True)
            times[name].append((time.perf_counter() - started) / STEPS)
    return times


if __name__ == "__main__":
    main()
