"""Every transform keeps the full-precision function, in training form and folded, for every family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from caq.families import Bound, bind, find
from caq.recipe import TransformRecipe
from caq.student import Student, block_calls, hidden_states, logits
from caq.transforms.apply import cast, fold_block, fold_edges, operators
from caq.transforms.online import hadamard_sites, install
from caq.transforms.plan import Plan, make_plan
from tests.support.tiny import BUILDERS, tiny_model

IDS = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(7))
RECIPES = {
    "everything": TransformRecipe(residual="womi"),
    "hadamard": TransformRecipe(residual="hadamard"),
    "no residual": TransformRecipe(residual="none"),
    "rotation only": TransformRecipe(
        scale_norms=False,
        rotate_value_output=False,
        scale_value_output=False,
        scale_query_key=False,
        scale_up_down=False,
    ),
    "unlearned": TransformRecipe(residual="hadamard", learn=False),
}


def random_parameters(plan: Plan, scale: float = 0.3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: scale * torch.randn(start.shape, generator=generator, dtype=torch.float64)
        for name, start in plan.initial().items()
    }


def bound_and_plan(family: str, recipe: TransformRecipe) -> tuple[Bound, Plan]:
    model = tiny_model(family)
    bound = bind(find(model.config.model_type), model)
    return bound, make_plan(bound, recipe, seed=0)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def student_logits(student: Student, parameters: Mapping[str, Tensor]) -> Tensor:
    calls = block_calls(student.bound, IDS)
    return logits(student, hidden_states(student, IDS, operators(student.plan, parameters), calls))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_form_keeps_the_logits(family: str, recipe: TransformRecipe, checkpointing: bool) -> None:
    bound, plan = bound_and_plan(family, recipe)
    student = Student(bound, plan, hadamard_sites(bound.family, bound.shape, recipe), checkpointing=checkpointing)
    found = student_logits(student, random_parameters(plan))
    assert relative_error(found, bound.model(IDS).logits) < 1e-5


def fold_model(bound: Bound, plan: Plan, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the whole folded state dict, float64."""
    transforms = operators(plan, cast(parameters, torch.float64))
    state = fold_edges(bound, plan, transforms)
    for index in range(bound.shape.layers):
        block = fold_block(bound, plan, index, transforms)
        state |= {f"{bound.family.layers}.{index}.{name}": tensor for name, tensor in block.items()}
    return state


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize("family", BUILDERS)
def test_folded_model_keeps_the_logits(family: str, recipe: TransformRecipe) -> None:
    bound, plan = bound_and_plan(family, recipe)
    folded = tiny_model(family, tie_word_embeddings=False)
    folded.load_state_dict(fold_model(bound, plan, random_parameters(plan)))
    for block in bind(bound.family, folded).blocks:
        install(block, hadamard_sites(bound.family, bound.shape, recipe))
    assert relative_error(folded(IDS).logits, bound.model(IDS).logits) < 1e-5


def test_checkpointing_changes_no_gradient() -> None:
    bound, plan = bound_and_plan("qwen2", RECIPES["everything"])
    student = Student(bound, plan, hadamard_sites(bound.family, bound.shape, RECIPES["everything"]), checkpointing=True)
    gradients = []
    for candidate in (student, replace(student, checkpointing=False)):
        parameters = {name: value.requires_grad_() for name, value in random_parameters(plan).items()}
        student_logits(candidate, parameters).square().mean().backward()
        gradients.append({name: value.grad for name, value in parameters.items()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-12)
