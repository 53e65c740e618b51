"""Q-resafe: only critical codes move, towards the aligned model's answers, and what is evaluated is what is stored."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from caq.data import token_blocks
from caq.errors import InvalidInput
from caq.families import OwnWeights
from caq.loading import load, load_tokenizer
from caq.numerics.scheme import resolve
from caq.objectives.restricted import TopKullbackLeibler
from caq.recipe import Recipe
from caq.train import FitResult, QResafe, Refine, learn_in_turn
from caq.train.preferences import Preference, greedy, margins
from caq.train.rounded import Rounded, is_of_codes
from caq.walk import block_arguments
from tests.support.learning import IDS, PROMPTS, Course, make_rounded, make_student, same, sealed, teach
from tests.support.pairs import write_pair
from tests.train.test_refine import run, stored_logits, tensors

OPTIONS = QResafe(
    steps=6, batch_size=4, micro_batch_size=4, learning_rate=0.3, share=0.02, response_tokens=6, evaluate_every=3,
    validation_samples=2, gradient_checkpointing=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    objective = TopKullbackLeibler(pull_k=20)
    return Course(teach(tmp_path_factory.mktemp("cache"), objective), objective)


@pytest.fixture(scope="module")
def rounded() -> Rounded:
    return make_rounded(make_student())


@pytest.fixture(scope="module")
def learned(course: Course, rounded: Rounded) -> FitResult:
    return OPTIONS.learn(course.inputs(rounded=rounded), rounded.start())


def test_only_the_codes_of_critical_weights_change(rounded: Rounded, learned: FitResult) -> None:
    changed = 0
    for index, block in enumerate(rounded.blocks):
        patched = rounded.block(index, learned.parameters)
        assert all(torch.equal(tensor, patched.others[name]) for name, tensor in block.others.items())
        for path, own in block.linears.items():
            move, other = learned.parameters[f"{index}.{path}.codes"], patched.linears[path]
            assert int((move != 0).sum()) <= round(OPTIONS.share * move.numel())
            different = other.codes != own.codes
            assert not different[move == 0].any()
            changed += int(different.sum())
            assert all(torch.equal(tensor, other.parameters[name]) for name, tensor in own.parameters.items())
    total = sum(one.codes.numel() for block in rounded.blocks for one in block.linears.values())
    assert changed > 0
    assert learned.history[-1]["changed"] == changed / total


def test_the_preference_is_learned_from_indifference(learned: FitResult) -> None:
    first, last = learned.history[0], learned.history[-1]
    # Against itself, a model prefers nothing.
    assert first["dpo"] == pytest.approx(math.log(2))
    assert last["dpo"] < 0.9 * first["dpo"]
    risen = ["pull-risen"] if last["pull"] > first["pull"] else []
    assert [entry.event for entry in learned.entries] == risen
    assert (first["changed"], learned.best_step) == (0, OPTIONS.steps)


def test_what_is_evaluated_is_what_is_stored(rounded: Rounded, learned: FitResult) -> None:
    parameters = dict(learned.parameters)
    hidden = rounded.final_hidden_states(IDS[:2], parameters, block_arguments(rounded.bound, IDS[:1]))
    assert torch.equal(rounded.logits(hidden), stored_logits(rounded, parameters))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=str)
def test_at_rest_every_code_is_the_one_that_was_rounded(stored: torch.dtype) -> None:
    rounded = make_rounded(make_student("qwen2"), stored)
    for index, block in enumerate(rounded.blocks):
        still = rounded.block(index, rounded.still_codes())
        assert all(torch.equal(still.linears[path].codes, one.codes) for path, one in block.linears.items())


def test_a_gradient_reaches_the_codes_straight_through(rounded: Rounded) -> None:
    moves = {name: value.requires_grad_() for name, value in rounded.still_codes().items()}
    weight = rounded.at(moves).block(0)["mlp.up_proj.weight"]
    weight.sum().backward()
    scale = rounded.blocks[0].linears["mlp.up_proj"].parameters["scale"].float()
    gradient = moves["0.mlp.up_proj.codes"].grad
    assert gradient is not None
    assert torch.equal(gradient, scale.repeat_interleave(weight.shape[1] // scale.shape[1], dim=1))


def test_answers_are_those_of_transformers_whatever_is_answered_beside_them(rounded: Rounded) -> None:
    bound = rounded.bound
    asked = replace(PROMPTS, tokens=(PROMPTS.tokens[0], PROMPTS.tokens[1][:3], PROMPTS.tokens[2]), ends=(1,))
    answers = greedy(bound, OwnWeights(bound), lambda _: (), asked, 9)
    for prompt, answer in zip(asked.tokens, answers, strict=True):
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        written: Any = bound.model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=9, eos_token_id=1, pad_token_id=0
        )
        assert answer == tuple(written[0, len(prompt) :].tolist())


def test_margins_are_those_of_the_answers_alone(rounded: Rounded) -> None:
    pairs = [Preference((3, 4, 5), (6, 7), (8, 9, 10, 11)), Preference((12,), (13, 14, 15), (16,))]

    def told(prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
        ids = torch.tensor([[*prompt, *answer]])
        logits = rounded.logits(rounded.final_hidden_states(ids, {}, block_arguments(rounded.bound, ids)))
        likelihoods = logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        return float(likelihoods.gather(-1, torch.tensor(answer)[:, None]).sum())

    expected = [told(pair.prompt, pair.chosen) - told(pair.prompt, pair.rejected) for pair in pairs]
    torch.testing.assert_close(margins(rounded, {}, pairs), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_where_both_answer_alike_nothing_changes_and_the_ledger_says_so(course: Course) -> None:
    student = make_student()
    numerics = resolve(Recipe().with_overrides({"scheme.preset": "W8A8"}).scheme, student.bound.shape.head_dim)
    rounded = make_rounded(replace(student, steps=(), weight_format=numerics.linear.weights))
    inputs, start = course.inputs(rounded=rounded), rounded.start()
    result = OPTIONS.model_copy(update={"response_tokens": 1}).learn(inputs, start)
    assert (result.best_step, result.history) == (0, ())
    assert result.parameters.keys() == start.keys()
    assert [entry.event for entry in result.entries] == ["too-few-pairs"]
    assert result.entries[0].message.endswith("nothing was changed; give more prompts in data.prompts")


def test_refine_goes_on_from_the_patched_codes(course: Course, rounded: Rounded, learned: FitResult) -> None:
    refine = Refine(steps=3, batch_size=4, micro_batch_size=4, evaluate_every=3, validation_samples=2)
    patched, refined = learn_in_turn((OPTIONS, refine), course.inputs(rounded=rounded), rounded.start())
    assert same(patched, learned)
    assert refined.history[0]["pull"] == patched.history[-1]["pull"]
    assert all(torch.equal(refined.parameters[name], x) for name, x in patched.parameters.items() if is_of_codes(name))
    for index in range(len(rounded.blocks)):
        first, second = (rounded.block(index, result.parameters).linears for result in (patched, refined))
        assert all(torch.equal(second[path].codes, one.codes) for path, one in first.items())


class Stopped(Exception):
    """Instead of a kill."""


def test_a_fit_stopped_between_its_steps_goes_on_to_the_same_bits(
    course: Course, rounded: Rounded, learned: FitResult, tmp_path: Path
) -> None:
    calls = 0

    def stopping(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Stopped
        return course.objective(*arguments)

    objective: Any = stopping
    objective.name = course.objective.name
    inputs = course.inputs(rounded=rounded, state_file=sealed(tmp_path))
    with pytest.raises(Stopped):
        OPTIONS.learn(replace(inputs, objective=objective), rounded.start())
    assert {path.name for path in tmp_path.iterdir()} == {"fit.safetensors", "fit-pairs.safetensors"}
    again = OPTIONS.learn(inputs, rounded.start())
    assert same(learned, again)
    assert learned.history == again.history


Q_RESAFE = {**OPTIONS.model_dump(), "steps": 3, "prompt_samples": 12}


def test_the_reloaded_checkpoint_computes_what_was_evaluated_last(tmp_path: Path) -> None:
    write_pair(tmp_path)
    before = tensors(run(tmp_path, "rounded", learn=[]).output)
    result = run(tmp_path, "out", **{"objective.name": "kl", "learn": [Q_RESAFE]})
    (fit,) = result.fits
    history: Any = fit["history"]
    after = tensors(result.output)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"weight_packed"}
    recipe = Recipe.from_yaml(result.output / "recipe.yaml")
    data = recipe.data.model_copy(update={"text": str(tmp_path / "text.txt")})
    ids = token_blocks(data, load_tokenizer(result.output), recipe.seed).ids[-2:]
    assert divergence(tmp_path / "aligned", result.output, ids) == pytest.approx(history[-1]["pull"], rel=1e-5)


def divergence(aligned: Path, output: Path, ids: Tensor) -> float:
    """KL(aligned || checkpoint) per token, both as they load."""
    with torch.no_grad():
        theirs, ours = (load(path, torch.float32)(ids).logits.double().log_softmax(-1) for path in (aligned, output))
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def test_other_prompts_are_another_run_and_a_model_without_template_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Walk home\nThe lamp\n")
    settings: dict[str, object] = {"data.prompts": str(prompts), "learn": [Q_RESAFE]}
    result = run(tmp_path, "out", **settings)
    assert "too-few-pairs" in [entry.event for entry in result.ledger]
    assert run(tmp_path, "out", **settings).found
    prompts.write_text("Walk home\nThe boats\n")
    assert not run(tmp_path, "out", **settings).found
    for path in tmp_path.glob("aligned/*template*"):
        path.unlink()
    with pytest.raises(InvalidInput, match=r"learn\.q-resafe: .*template"):
        run(tmp_path, "other", **settings)


def test_prompts_that_nothing_reads_are_refused() -> None:
    assert Recipe.from_yaml("data: {prompts: asked.txt}\nlearn: [q-resafe]").needs_prompts
    with pytest.raises(InvalidInput, match=r"data\.prompts: is read only where data\.text is self, and by"):
        Recipe.from_yaml("data: {prompts: asked.txt, text: wikitext2}\nlearn: [refine]")
