"""Overrides: dotted keys reach sections, entries by their names, and whole lists."""

from __future__ import annotations

from typing import Any

import pytest

from caq.errors import InvalidInput
from caq.recipe import Recipe, parse_override, preset
from caq.train import EndToEnd

CAL = preset("cal")


def problems_of(overrides: dict[str, object], recipe: Recipe | None = None) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        (recipe or CAL).with_overrides(overrides)
    return list(caught.value.problems)


def values(overrides: dict[str, object], recipe: Recipe | None = None) -> dict[str, Any]:
    return (recipe or CAL).with_overrides(overrides).model_dump()


def test_dotted_keys_reach_entries_by_name_and_leave_the_rest() -> None:
    changed = values(
        {"learn.end-to-end.steps": 60, "transforms.residual-rotation.start": "hadamard", "dtype": "bfloat16"}
    )
    expected = CAL.model_dump()
    expected["learn"][0]["steps"], expected["transforms"][0]["start"] = 60, "hadamard"
    assert changed == {**expected, "dtype": "bfloat16"}
    recipe = Recipe(seed=7).with_overrides({"objective.pull_k": 5, "scheme.preset": "w8a8"})
    assert recipe.model_dump()["objective"]["pull_k"] == 5
    assert (recipe.scheme.preset, recipe.seed) == ("W8A8", 7)
    assert Recipe(seed=7).with_overrides({}) == Recipe(seed=7)


def test_unknown_keys_are_all_named_with_the_nearest_right_one() -> None:
    told = "\n".join(
        problems_of(
            {
                **{"objective.alfa": 1, "shceme.preset": "W8A8", "seed.x": 1, "data": 3, "steps": 3},
                **{"learn.end-to-endd.steps": 3, "transforms.residual-rotation.strat": 1, "dtype.x": 1},
            }
        )
    )
    assert "objective.alfa: unknown key; did you mean objective.alpha?" in told
    assert "shceme.preset: unknown key; did you mean scheme.preset?" in told
    assert "seed.x: unknown key" in told
    assert "dtype.x: unknown key" in told
    assert "data: should be a mapping of keys" in told
    assert "\nsteps: unknown key; did you mean learn.end-to-end.steps?" in told
    assert "learn.end-to-endd.steps: unknown key; did you mean learn.end-to-end.steps?" in told
    assert "transforms.residual-rotation.strat: unknown key; did you mean transforms.residual-rotation.start?" in told


def test_another_objective_keeps_the_options_that_it_has() -> None:
    code = preset("paper-code")
    assert values({"objective.name": "kl-top"}, code)["objective"] == {
        **{"name": "kl-top", "pull_k": 1000, "renormalize": False}
    }
    assert values({"objective.name": "mse"}, code)["objective"] == {"name": "mse"}
    assert values({"objective": "kl-top"}, code)["objective"]["pull_k"] == 500
    assert values({"objective": "kl-top", "objective.pull_k": 7})["objective"]["pull_k"] == 7
    assert values({"quantizer.name": "rtn"}, code)["quantizer"].keys() < code.model_dump()["quantizer"].keys()


def test_an_option_that_the_new_objective_lacks_is_refused_where_it_is_given() -> None:
    assert problems_of({"objective.name": "mse", "objective.temperature": 2}) == [
        "objective.temperature: unknown key; mse has no options"
    ]


def test_a_whole_list_is_replaced_and_options_of_what_is_gone_are_only_checked() -> None:
    gone = {"learn.end-to-end.steps": 3, "transforms.residual-rotation.start": "hadamard"}
    assert values({**gone, "learn": [], "transforms": []}) == values({"learn": [], "transforms": []})
    assert problems_of({"learn.end-to-end.steps": "many", "learn": []}) == [
        "learn.end-to-end.steps: should be a valid integer, is 'many' (str)"
    ]
    for entry in ("end-to-end", {"name": "end-to-end"}, EndToEnd()):
        assert values({"learn.end-to-end.steps": 3, "learn": [entry]})["learn"][0]["steps"] == 3


def test_an_option_of_an_entry_that_is_not_there_is_refused() -> None:
    (problem,) = problems_of({"learn.end-to-end.steps": 3}, Recipe.from_yaml("learn: []"))
    assert problem.startswith("learn.end-to-end.steps: end-to-end is not in the recipe's learn; add it")


def test_two_learners_of_one_name_take_an_option_together() -> None:
    both = values({"learn": ["end-to-end", "end-to-end"], "learn.end-to-end.steps": 3})["learn"]
    assert [learner["steps"] for learner in both] == [3, 3]


def test_overrides_are_read_from_the_command_line_as_yaml() -> None:
    assert parse_override("objective.alpha=0.5") == ("objective.alpha", 0.5)
    assert parse_override("quantizer.samples=null") == ("quantizer.samples", None)
    assert parse_override("learn.end-to-end.gradient_clip=1e-3") == ("learn.end-to-end.gradient_clip", 0.001)
    assert parse_override("transforms=[]") == ("transforms", [])
    with pytest.raises(InvalidInput, match="key=value"):
        parse_override("objective.alpha")
