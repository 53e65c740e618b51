"""Every transform keeps the model's own logits, in training form and folded, for every family; the proof proves it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import GraniteConfig, GraniteForCausalLM

from caq.errors import FunctionChanged
from caq.families import FAMILIES, Family, bind
from caq.families.llama import llama_block
from caq.preservation import TOLERANCE, check_preserved
from caq.student import Student
from caq.transforms import TRANSFORMS
from caq.transforms.apply import Folded, cast, fold
from caq.transforms.residual_rotation import ResidualRotation
from caq.transforms.spec import TransformSpec
from tests.support.tiny import BUILDERS, SIZES, tiny_model
from tests.support.transforming import (
    EVERYTHING,
    IDS,
    bound_and_plan,
    bound_to,
    folded_logits,
    plan_of,
    random_parameters,
    relative_error,
    student_logits,
)

SETS: dict[str, tuple[TransformSpec, ...]] = {
    **{name: (spec(),) for name, spec in TRANSFORMS.items()},
    "everything": EVERYTHING,
    "everything, hadamard": (ResidualRotation(start="hadamard"), *EVERYTHING[1:]),
    "nothing": (),
}


def test_every_registered_family_has_a_tiny_model() -> None:
    assert {tiny_model(name).config.model_type for name in BUILDERS} | {"ministral"} == set(FAMILIES)


@pytest.mark.parametrize("specs", SETS.values(), ids=SETS.keys())
@pytest.mark.parametrize("family", BUILDERS)
def test_training_form_and_folded_model_keep_the_models_own_logits(
    family: str, specs: tuple[TransformSpec, ...]
) -> None:
    bound, plan = bound_and_plan(family, specs)
    expected, parameters = bound.model(IDS).logits, random_parameters(plan)
    assert relative_error(student_logits(Student(bound, plan, checkpointing=False), parameters), expected) < 1e-5
    empty = tiny_model(family, tie_word_embeddings=False)
    assert relative_error(folded_logits(bound, plan, parameters, empty), expected) < 1e-5


@pytest.mark.parametrize("family", BUILDERS)
def test_checkpointing_changes_no_logit_and_no_gradient(family: str) -> None:
    bound, plan = bound_and_plan(family)
    gradients: list[dict[str, Tensor | None]] = []
    for checkpointing in (True, False):
        parameters = {name: value.requires_grad_() for name, value in random_parameters(plan).items()}
        student_logits(Student(bound, plan, checkpointing=checkpointing), parameters).square().mean().backward()
        gradients.append({name: value.grad for name, value in parameters.items()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_proof_passes_in_every_precision_and_leaves_the_model_as_it_was(dtype: torch.dtype) -> None:
    bound = bound_to(tiny_model("qwen2", dtype=dtype))
    before = {name: tensor.clone() for name, tensor in bound.model.state_dict().items()}
    plan = plan_of(bound)
    folded = fold(bound, plan, plan.operators(cast(random_parameters(plan), torch.float64)))
    difference = check_preserved(bound, folded, lambda index: plan.sites(index, folded.operators), IDS)
    assert 0 < difference < 1e-5
    for name, tensor in bound.model.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, before[name])


def test_the_proof_fails_where_an_edit_is_left_out() -> None:
    bound, plan = bound_and_plan("llama")
    broken = replace(plan, edits=(plan.edits[0], plan.edits[1][1:]))
    folded = fold(bound, broken, broken.operators(cast(random_parameters(plan), torch.float64)))
    with pytest.raises(FunctionChanged, match="the family spec does not describe this model"):
        check_preserved(bound, folded, lambda index: plan.sites(index, folded.operators), IDS)


def granite(**multipliers: float) -> GraniteForCausalLM:
    torch.manual_seed(0)
    unscaled = dict(embedding_multiplier=1.0, logits_scaling=1.0, residual_multiplier=1.0, attention_multiplier=8**-0.5)
    return GraniteForCausalLM(GraniteConfig(**{**SIZES, **unscaled, **multipliers})).double().eval()


@pytest.mark.parametrize(
    ("multipliers", "kept"),
    [({}, True), ({"embedding_multiplier": 12.0}, False), ({"logits_scaling": 8.0}, False)],
    ids=["none", "of the embedding", "of the logits"],
)
def test_a_scale_outside_of_the_blocks_that_the_walk_does_not_know_fails_the_proof(
    multipliers: dict[str, float], kept: bool
) -> None:
    bound = bind(Family("Granite as if it were LLaMA", ("granite",), llama_block), granite(**multipliers))
    plan = plan_of(bound)
    folded: Folded = fold(bound, plan, plan.operators(cast(plan.start({}), torch.float64)))

    def prove() -> float:
        return check_preserved(bound, folded, lambda index: plan.sites(index, folded.operators), IDS)

    if kept:
        assert prove() < TOLERANCE
    else:
        with pytest.raises(FunctionChanged):
            prove()
