"""Where nothing rounds to float32 on the way, transforms keep the function to float64's own accuracy.

Transformers' RMSNorm computes in float32 whatever the model's precision is, which hides errors below 1e-6; here the
norms are replaced by ones that do not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from caq.families import Bound, bind, find
from caq.recipe import TransformRecipe
from caq.student import Student
from caq.transforms.base import Diagonal
from caq.transforms.online import hadamard_sites, install
from caq.transforms.plan import Edit, Plan, make_plan
from caq.transforms.scaling import Scaling
from tests.support.tiny import BUILDERS, tiny_model
from tests.transforms.test_preservation import (
    IDS,
    RECIPES,
    fold_model,
    random_parameters,
    relative_error,
    student_logits,
)

EXACT = 1e-9


class ExactNorm(nn.Module):
    """RMSNorm in its input's precision."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)


def exact_model(family: str, **sizes: Any) -> PreTrainedModel:
    model = tiny_model(family, **sizes)
    norms = [(name, module) for name, module in model.named_modules() if type(module).__name__.endswith("RMSNorm")]
    assert norms
    for name, norm in norms:
        model.set_submodule(name, ExactNorm(norm.weight.data, norm.variance_epsilon))
    return model


def exact_plan(family: str, recipe: TransformRecipe) -> tuple[Bound, Plan]:
    model = exact_model(family)
    bound = bind(find(model.config.model_type), model)
    return bound, make_plan(bound, recipe, seed=0)


def folded_logits(
    family: str, bound: Bound, plan: Plan, parameters: dict[str, Tensor], recipe: TransformRecipe
) -> Tensor:
    folded = exact_model(family, tie_word_embeddings=False)
    folded.load_state_dict(fold_model(bound, plan, parameters))
    for block in bind(bound.family, folded).blocks:
        install(block, hadamard_sites(bound.family, bound.shape, recipe))
    logits: Tensor = folded(IDS).logits
    return logits


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize("family", BUILDERS)
def test_every_transform_keeps_the_function_to_1e_9(family: str, recipe: TransformRecipe) -> None:
    bound, plan = exact_plan(family, recipe)
    parameters = random_parameters(plan)
    expected = bound.model(IDS).logits
    student = Student(bound, plan, hadamard_sites(bound.family, bound.shape, recipe), checkpointing=False)
    assert relative_error(student_logits(student, parameters), expected) < EXACT
    assert relative_error(folded_logits(family, bound, plan, parameters, recipe), expected) < EXACT


ONLY_QUERY_KEY = TransformRecipe(
    residual="none", scale_norms=False, rotate_value_output=False, scale_value_output=False, scale_up_down=False
)


def test_paired_channels_share_one_scale() -> None:
    operator = Scaling(2, 8, paired=True).operator(torch.randn(2, 4, dtype=torch.float64))
    assert torch.equal(operator.factors[:, :4], operator.factors[:, 4:])
    assert operator.factors[:, :4].unique().numel() == 8


@pytest.mark.parametrize("family", BUILDERS)
def test_query_key_scales_that_are_not_tied_within_rope_pairs_change_the_function(family: str) -> None:
    bound, plan = exact_plan(family, ONLY_QUERY_KEY)
    expected = bound.model(IDS).logits
    parameters = random_parameters(plan)
    student = Student(bound, plan, hadamard_sites(bound.family, bound.shape, ONLY_QUERY_KEY), checkpointing=False)
    assert relative_error(student_logits(student, parameters), expected) < EXACT

    free = {
        name: replace(t, paired=False) if isinstance(t, Scaling) and t.paired else t
        for name, t in plan.transforms.items()
    }
    untied = replace(plan, transforms=free)
    changed = student_logits(replace(student, plan=untied), random_parameters(untied))
    assert relative_error(changed, expected) > 1e-3


def without(plan: Plan, *endings: str) -> Plan:
    def kept(edit: Edit) -> bool:
        return not edit.target.endswith(endings)

    return replace(plan, edits=tuple(tuple(filter(kept, block)) for block in plan.edits))


@pytest.mark.parametrize(
    ("family", "bias"),
    [
        ("qwen2", "q_proj.bias"),
        ("qwen2", "k_proj.bias"),
        ("qwen2", "v_proj.bias"),
        ("llama-biases", "o_proj.bias"),
        ("llama-biases", "up_proj.bias"),
        ("llama-biases", "down_proj.bias"),
    ],
)
def test_every_bias_is_transformed_with_its_weight(family: str, bias: str) -> None:
    recipe = RECIPES["everything"]
    bound, plan = exact_plan(family, recipe)
    parameters = random_parameters(plan)
    expected = bound.model(IDS).logits
    student = Student(bound, plan, hadamard_sites(bound.family, bound.shape, recipe), checkpointing=False)
    assert relative_error(student_logits(student, parameters), expected) < EXACT
    assert relative_error(student_logits(replace(student, plan=without(plan, bias)), parameters), expected) > 1e-3


def test_query_and_key_norms_take_the_query_key_scaling_and_shield_the_projections() -> None:
    bound, plan = exact_plan("qwen3", ONLY_QUERY_KEY)
    targets = {edit.target for block in plan.edits for edit in block if edit.transform.endswith("query_key")}
    assert targets == {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
    scaling = plan.transforms["block.0.query_key"].operator(random_parameters(plan)["block.0.query_key"])
    assert isinstance(scaling, Diagonal)
    assert scaling.factors.shape == (1, bound.shape.head_dim)  # one gain serves every head

    # In the projections, before the norms, the same scales would change the function.
    moved = tuple(
        tuple(replace(edit, target=edit.target.replace("_norm", "_proj")) for edit in block) for block in plan.edits
    )
    student = Student(bound, plan, hadamard_sites(bound.family, bound.shape, ONLY_QUERY_KEY), checkpointing=False)
    expected, parameters = bound.model(IDS).logits, random_parameters(plan)
    assert relative_error(student_logits(student, parameters), expected) < EXACT
    assert (
        relative_error(student_logits(replace(student, plan=replace(plan, edits=moved)), parameters), expected) > 1e-3
    )


def test_a_rotated_tied_model_comes_back_untied() -> None:
    bound, plan = exact_plan("llama3.2-tied", RECIPES["everything"])
    assert bound.embedding.weight is bound.head.weight
    folded = fold_model(bound, plan, random_parameters(plan))
    assert relative_error(folded["lm_head.weight"], folded["model.embed_tokens.weight"]) > 0.1
    torch.testing.assert_close(bound.embedding.weight, exact_model("llama3.2-tied").get_input_embeddings().weight)
