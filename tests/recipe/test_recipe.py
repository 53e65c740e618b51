import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from caq.errors import InvalidInput
from caq.numerics.options import SCHEMES
from caq.recipe import (
    PRESETS,
    DataRecipe,
    ObjectiveRecipe,
    QuantizerRecipe,
    Recipe,
    SchemeRecipe,
    TrainingRecipe,
    TransformRecipe,
    parse_override,
    preset,
)

FLOATS = st.floats(min_value=1e-9, max_value=1e6, allow_nan=False)
SMALL = st.integers(min_value=1, max_value=10**6)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    micro = draw(st.integers(1, 8))
    return Recipe(
        scheme=SchemeRecipe(
            preset=draw(st.sampled_from(["W4A4", "w8a8", "NVFP4"])),
            activations_symmetric=draw(st.sampled_from([None, True, False])),
            output_projection_groups=draw(st.booleans()),
            value_bits=draw(st.sampled_from([4, 8, 16])),
        ),
        transforms=TransformRecipe(
            residual=draw(st.sampled_from(["womi", "hadamard", "none"])), learn=draw(st.booleans())
        ),
        objective=ObjectiveRecipe(
            name=draw(st.sampled_from(["mse", "kl", "kl-top", "contrastive-kl", "contrastive-kl-top", "cal"])),
            alpha=draw(st.floats(min_value=0, max_value=1e300)),
            push_k=draw(SMALL),
        ),
        quantizer=QuantizerRecipe(damping=draw(st.floats(1e-300, 1.0)), clip_norm=draw(FLOATS)),
        data=DataRecipe(text=draw(st.text(min_size=1, max_size=12)), samples=draw(st.integers(5, 10**6))),
        training=TrainingRecipe(
            batch_size=micro * draw(st.integers(1, 8)), micro_batch_size=micro, gradient_clip=draw(FLOATS)
        ),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


@settings(max_examples=60, deadline=None)
@given(recipes())
@example(Recipe(data=DataRecipe(text="a\x85b")))
@example(Recipe(data=DataRecipe(text="\u2028")))
def test_every_recipe_survives_yaml_and_keeps_its_fingerprint(recipe: Recipe) -> None:
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe
    assert again.fingerprint() == recipe.fingerprint()


@settings(max_examples=60, deadline=None)
@given(recipes(), recipes())
def test_fingerprints_differ_exactly_where_recipes_do(one: Recipe, other: Recipe) -> None:
    assert (one.fingerprint() == other.fingerprint()) == (one == other)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="abc:-[]{}\n \"'&*!0.e#|>,?%@", max_size=60).map(lambda text: text + "\n"))
def test_any_text_is_a_recipe_or_a_readable_refusal(text: str) -> None:
    try:
        again = Recipe.from_yaml(text).to_yaml()
    except InvalidInput as error:
        again = None
        problems = error.problems
    if again is None:
        assert problems
        assert all(problem and not problem.startswith(":") for problem in problems)
    else:
        assert Recipe.from_yaml(again).to_yaml() == again


def test_all_problems_are_listed_at_once_with_nearest_key_and_expected_type() -> None:
    text = """
    objective: {name: kal, alpa: 3, pull_k: "5", alpha: -1}
    alpha: 3
    scheme: W4A4
    quantiser: {}
    data: {samples: 0}
    training: {steps: true}
    """
    with pytest.raises(InvalidInput) as caught:
        Recipe.from_yaml(text)
    problems = {problem.partition(": ")[0]: problem for problem in caught.value.problems}
    assert problems.keys() == {
        *("objective.name", "objective.alpa", "objective.pull_k", "objective.alpha", "alpha", "scheme"),
        *("quantiser", "data.samples", "training.steps"),
    }
    assert "did you mean alpha?" in problems["objective.alpa"]
    assert "did you mean objective.alpha?" in problems["alpha"]
    assert "did you mean quantizer?" in problems["quantiser"]
    assert "valid integer, is '5' (str)" in problems["objective.pull_k"]
    assert "'contrastive-kl-top' or 'cal', is 'kal'" in problems["objective.name"]
    assert caught.value.status == 2


def test_an_unknown_key_without_a_near_one_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="zzz: unknown key; known: scheme, transforms"):
        Recipe.model_validate({"zzz": 1})


def test_a_constructor_raises_the_same_error_as_a_file() -> None:
    with pytest.raises(InvalidInput) as caught:
        SchemeRecipe(preset="W4A5", value_bits=9)  # type: ignore[arg-type] # wrong on purpose
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["preset", "value_bits"]
    assert "did you mean W4A" in caught.value.problems[0]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (dict.fromkeys(("residual",), "none"), "transforms.learn"),
        ({"scheme.preset": "W4A16"}, "training.quantize_weights"),
        (
            {"scheme.preset": "W4A16_ASYM", "transforms.learn": False, "scheme.activations_symmetric": True},
            "scheme.activations_symmetric",
        ),
        (
            {"scheme.preset": "W8A16", "transforms.learn": False, "scheme.output_projection_groups": True},
            "scheme.output_projection_groups",
        ),
        ({"training.batch_size": 4, "training.micro_batch_size": 3}, "training.micro_batch_size"),
        ({"data.samples": 4}, "training.validation_samples"),
        ({"quantizer.samples": 129}, "quantizer.samples"),
        ({"quantizer.damping": 2.0}, "quantizer.damping"),
    ],
)
def test_contradictions_name_the_key_and_a_way_out(overrides: dict[str, object], key: str) -> None:
    if overrides == {"residual": "none"}:
        scalings = (
            "scale_norms",
            "scale_value_output",
            "scale_query_key",
            "scale_up_down",
            "rotate_value_output",
        )
        overrides = {"transforms.residual": "none"} | {f"transforms.{name}": False for name in scalings}
    with pytest.raises(InvalidInput) as caught:
        Recipe().with_overrides(overrides)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [key]


@pytest.mark.parametrize(
    "change", [{"training.quantize_weights": True}, {"transforms.learn": False}, {"scheme.value_bits": 4}]
)
def test_weight_only_schemes_work_by_each_way_out(change: dict[str, object]) -> None:
    assert Recipe().with_overrides({"scheme.preset": "W4A16"} | change).scheme.weight_only


def test_contradictions_are_all_found_together() -> None:
    with pytest.raises(InvalidInput) as caught:
        Recipe().with_overrides({"quantizer.damping": 2.0, "quantizer.samples": 999, "data.samples": 2})
    assert len(caught.value.problems) == 3


def test_overrides_leave_the_rest_and_name_unknown_keys() -> None:
    recipe = Recipe(seed=7).with_overrides({"objective.alpha": 0.5, "scheme.preset": "w8a8"})
    assert (recipe.objective.alpha, recipe.scheme.preset, recipe.seed) == (0.5, "W8A8", 7)
    assert Recipe(seed=7).with_overrides({}) == Recipe(seed=7)
    with pytest.raises(InvalidInput) as caught:
        Recipe().with_overrides({"objective.alfa": 1, "shceme.preset": "W8A8", "seed.x": 1, "data": 3})
    assert len(caught.value.problems) == 4


def test_overrides_are_read_from_the_command_line_as_yaml() -> None:
    assert parse_override("objective.alpha=0.5") == ("objective.alpha", 0.5)
    assert parse_override("quantizer.samples=null") == ("quantizer.samples", None)
    assert parse_override("training.gradient_clip=1e-3") == ("training.gradient_clip", 0.001)
    assert parse_override("data.text=[a.txt, b]") == ("data.text", ["a.txt", "b"])
    with pytest.raises(InvalidInput, match="key=value"):
        parse_override("objective.alpha")


def test_presets_say_what_method_md_says() -> None:
    assert preset("default") == Recipe()
    paper, code = preset("paper"), preset("paper-code")
    assert (paper.objective.pull_k, paper.objective.push_k, paper.objective.difference) == (
        500,
        500,
        "probability",
    )
    assert (paper.objective.renormalize, paper.objective.alpha, paper.data.samples) == (True, 0.75, 128)
    assert (code.objective.pull_k, code.objective.push_k, code.objective.difference) == (1000, 500, "logit")
    assert not code.objective.renormalize
    assert not code.quantizer.quantized_statistics
    assert (code.scheme.activations_symmetric, code.scheme.value_bits) == (False, 4)
    assert (code.training.rotation_learning_rate, code.training.scaling_learning_rate) == (0.0169, 0.00179)
    assert len({preset(name).fingerprint() for name in PRESETS}) == len(PRESETS)
    with pytest.raises(InvalidInput, match="did you mean paper"):
        preset("papre")


def test_the_papers_code_departs_from_its_text_in_these_settings_and_no_others() -> None:
    paper, code = preset("paper").model_dump(), preset("paper-code").model_dump()
    differ = {
        f"{section}.{key}": (value, code[section][key])
        for section, settings in paper.items()
        if isinstance(settings, dict)
        for key, value in settings.items()
        if value != code[section][key]
    }
    assert differ == {
        "scheme.output_projection_groups": (False, True),
        "scheme.value_bits": (16, 4),
        "objective.pull_k": (500, 1000),
        "objective.difference": ("probability", "logit"),
        "objective.renormalize": (True, False),
        "quantizer.quantized_statistics": (True, False),
    }


def test_apc_is_cal() -> None:
    assert Recipe.from_yaml("objective: {name: apc}") == Recipe()
    assert ObjectiveRecipe(name="cal").needs_base
    assert not ObjectiveRecipe(name="kl-top").needs_base


def test_scheme_names_are_the_library_s() -> None:
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

    assert set(SCHEMES) == PRESET_SCHEMES.keys() - {"UNQUANTIZED"} | {"W4A4_G128"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2", "given more than once: seed"),
        ("- a: 1", "a recipe is a mapping"),
        ("a: [", "not readable as YAML"),
        ("[" * 5000 + ":", "not readable as YAML"),
        ("!!python/object/apply:os.system [ls]", "not readable as YAML"),
        ("seed: .nan", "seed: should be a valid integer"),
        ("training: {gradient_clip: .inf}", "training.gradient_clip: should be a finite number"),
    ],
)
def test_yaml_surprises_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Recipe.from_yaml(text)
    assert message in str(caught.value)


def test_files_are_read_and_named_in_errors(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("# nothing yet\n")
    assert Recipe.from_yaml(file) == Recipe.from_yaml(str(file)) == Recipe.from_yaml("") == Recipe()
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match=r"recipe\.yaml: not a readable recipe"):
        Recipe.from_yaml(file)
    with pytest.raises(InvalidInput, match="presets: default, paper, paper-code"):
        Recipe.from_yaml("nowhere.yaml")


def test_importing_recipes_imports_no_torch() -> None:
    code = "import sys, caq.recipe; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
