"""A tiny lesson in memory: student, teachers, calibration tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from caq.families import Bound, bind, find
from caq.files.sealed import SealedFile
from caq.numerics.scheme import resolve
from caq.objectives import Objective
from caq.recipe import Recipe, TrainingRecipe
from caq.student import Student
from caq.train.loop import FitResult, fit
from caq.train.teacher import HiddenStates, TeacherCache, cache_hidden, cache_targets
from caq.transforms.online import activation_sites, hadamard_sites
from caq.transforms.plan import make_plan
from tests.support.tiny import tiny_model

IDS = torch.randint(0, 64, (10, 20), generator=torch.Generator().manual_seed(5))
SETTINGS = TrainingRecipe(steps=12, batch_size=4, micro_batch_size=2, evaluate_every=3, validation_samples=2)
DTYPE = torch.float32


def tiny_bound(seed: int = 0, family: str = "llama") -> Bound:
    model = tiny_model(family, seed=seed, dtype=DTYPE)
    return bind(find(model.config.model_type), model)


def hidden_states(root: Path, seed: int, load: Callable[[], Bound] | None = None) -> HiddenStates:
    """Cache the final hidden states of the tiny model of `seed`."""
    load = load or (lambda: tiny_bound(seed))
    return cache_hidden(load, f"model {seed}", IDS, root, name=str(seed), dtype=DTYPE, quiet=True)


def teach(root: Path, objective: Objective) -> TeacherCache:
    """Cache the objective's targets: model 0 is the aligned one, model 1 its base."""
    aligned, base = hidden_states(root, 0), hidden_states(root, 1)
    return cache_targets(objective, aligned, base, len(IDS), root, device=torch.device("cpu"), quiet=True)


def make_student(family: str = "llama") -> Student:
    bound, recipe = tiny_bound(family=family), Recipe()
    sites = (
        *hadamard_sites(bound.family, bound.shape, recipe.transforms),
        *activation_sites(bound.family, resolve(recipe.scheme, bound.shape.head_dim)),
    )
    return Student(bound, make_plan(bound, recipe.transforms, seed=0), sites)


@dataclass(frozen=True)
class Class:
    """Everything `fit` takes but what a test varies."""

    teacher: TeacherCache
    objective: Objective

    def fit(
        self,
        settings: TrainingRecipe = SETTINGS,
        *,
        objective: Objective | None = None,
        seed: int = 0,
        state_file: SealedFile | None = None,
    ) -> FitResult:
        """Fit a fresh student."""
        chosen = objective or self.objective
        return fit(make_student(), chosen, self.teacher, IDS, settings, seed=seed, state_file=state_file, quiet=True)


def sealed(directory: Path) -> SealedFile:
    """Return where a test's fit keeps its state."""
    return SealedFile(directory / "fit.safetensors", "this run")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two sets of parameters are equal, bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
