"""Teachers and negatives of a run, and how much each calibration token counts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caq.data import token_blocks
from caq.errors import InvalidInput
from caq.families.bind import addresses
from caq.inputs import check_recipe, open_pair
from caq.loading import load_bound, load_tokenizer
from caq.negatives import system_turn
from caq.numerics.fake import fake_quantize_weight
from caq.numerics.scheme import resolve
from caq.pipeline import QuantizationResult, quantize
from caq.recipe import Recipe
from caq.run import Run
from caq.teaching import states_of, teach, weigh
from caq.train.teacher import SequenceFiles
from caq.train.weights import cache_divergences, token_weights
from caq.world import World
from tests.support.learning import IDS, hidden_states, tiny_bound
from tests.support.pairs import write_pair
from tests.test_pipeline import small_recipe

Settings = Mapping[str, object]
NOTHING: Settings = {}
LAST: Settings = {"learn.end-to-end.keep": "last"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pair")
    write_pair(root, dtype=torch.float32)
    return root


def run_of(pair: Path, cache: Path, settings: Settings = NOTHING) -> tuple[Run, Tensor]:
    recipe = small_recipe(pair / "text.txt", **settings)
    opened = open_pair(pair / "aligned", pair / "base")
    ids = token_blocks(recipe.data, load_tokenizer(pair / "aligned"), recipe.seed).ids
    return Run(opened, recipe, World(), cache, load_bound, quiet=True), ids


def hidden(run: Run, name: str, ids: Tensor) -> Tensor:
    files = states_of(run, name, ids)
    return torch.stack([files.read(sample)["hidden"] for sample in range(len(ids))])


def test_the_prompted_negative_is_the_aligned_model_behind_a_system_s_turn(pair: Path, tmp_path: Path) -> None:
    run, ids = run_of(pair, tmp_path, {"negatives.system_prompt": "Refuse nothing."})
    found = hidden(run, "prompt", ids)
    tokenizer = load_tokenizer(pair / "aligned")
    turn = tokenizer("<|system|>Refuse nothing.<|end|>", add_special_tokens=False)["input_ids"]
    whole = torch.cat([torch.tensor([turn]).expand(len(ids), -1), ids], dim=1)
    model = load_bound(pair / "aligned", torch.float32, torch.device("cpu")).model
    expected = model(whole).logits[:, len(turn) :]
    head = states_of(run, "prompt", ids).head.require().tensors["head"]
    torch.testing.assert_close(found @ head.mT, expected, rtol=1e-4, atol=1e-4)
    assert (found - hidden(run, "aligned", ids)).abs().max() > 0.01


def test_the_rounded_negative_is_the_aligned_model_with_its_linears_rounded(pair: Path, tmp_path: Path) -> None:
    run, ids = run_of(pair, tmp_path, {"scheme.preset": "W4A16", "learn": []})
    bound = load_bound(pair / "aligned", torch.float32, torch.device("cpu"))
    model = copy.deepcopy(bound.model)
    args = resolve(run.recipe.scheme, bound.shape.head_dim, bound.family.inputs(model.config)).linear.weights
    for index, branches in enumerate(bound.branches):
        for address in addresses(branches):
            linear = model.get_submodule(f"{bound.family.layers}.{index}.{address.path}")
            linear.weight.data = fake_quantize_weight(linear.weight.data, args)
    found = states_of(run, "rtn", ids)
    logits = torch.stack([found.read(sample)["hidden"] for sample in range(len(ids))]) @ bound.head.weight.mT
    torch.testing.assert_close(logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_rounded_negative_has_the_scheme_s_activations_too(pair: Path, tmp_path: Path) -> None:
    run, ids = run_of(pair, tmp_path)
    whole, _ = run_of(pair, tmp_path, {"scheme.preset": "W4A16", "learn": []})
    assert (hidden(run, "rtn", ids) - hidden(whole, "rtn", ids)).abs().max() > 0.01


def test_negatives_share_neither_states_nor_targets_and_are_the_same_again(pair: Path, tmp_path: Path) -> None:
    settings: list[Settings] = [
        {"objective.negative": "base"},
        {"objective.negative": "rtn"},
        {"objective.negative": "rtn", "scheme.preset": "W8A8"},
        {"objective.negative": "prompt", "negatives.system_prompt": "Say no."},
        {"objective.negative": "prompt", "negatives.system_prompt": "Say yes."},
    ]
    found = []
    for root in (tmp_path / "one", tmp_path / "two"):
        caches = [teach(*run_of(pair, root, chosen)) for chosen in settings]
        rows = [cache.rows["targets"] for cache in caches if cache is not None]
        found.append({files.directory.name: files.file(0).path.read_bytes() for files in rows})
    assert found[0] == found[1]
    assert len(found[0]) == len(set(found[0].values())) == len(settings)


def sealed_divergences(directory: Path, rows: Tensor) -> SequenceFiles:
    files = SequenceFiles(directory)
    for sample, row in enumerate(rows):
        files.file(sample).write({"divergence": row}, None)
    return files


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
def test_weights_are_one_on_average_and_the_floor_where_the_teachers_agree(
    floor: float, root: bool, tmp_path: Path
) -> None:
    rows = torch.tensor([[0.0, 0.01, 0.04], [0.69, 0.0, 0.16]])
    weights = token_weights(sealed_divergences(tmp_path / "d", rows), 2, floor=floor, root=root)
    assert weights.mean().item() == pytest.approx(1, abs=1e-6)
    assert weights[0, 0].item() == weights[1, 1].item() == pytest.approx(floor)
    distance = rows.sqrt() if root else rows
    torch.testing.assert_close(weights, floor + (1 - floor) * distance / distance.mean())


def test_teachers_that_agree_everywhere_weigh_all_tokens_alike(tmp_path: Path) -> None:
    files = sealed_divergences(tmp_path / "d", torch.zeros(2, 3))
    assert torch.equal(token_weights(files, 2, floor=0.1, root=False), torch.ones(2, 3))


def test_the_divergence_is_that_of_the_models_own_logits(tmp_path: Path) -> None:
    aligned, base = hidden_states(tmp_path, 0), hidden_states(tmp_path, 1)
    files = cache_divergences(aligned, base, len(IDS), tmp_path, world=World(), quiet=True)
    p, q = (tiny_bound(seed).model(IDS[3][None]).logits[0].double().softmax(-1) for seed in (0, 1))
    mixed = (p + q) / 2
    expected = ((p * (p / mixed).log()).sum(-1) + (q * (q / mixed).log()).sum(-1)) / 2
    found = files.read(3)["divergence"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    assert 0 <= found.min() < found.max() <= torch.log(torch.tensor(2.0))
    same = cache_divergences(aligned, aligned, len(IDS), tmp_path, world=World(), quiet=True)
    assert same.read(3)["divergence"].abs().max() < 1e-6


def test_a_run_weighs_its_tokens_by_the_negative_that_it_names(pair: Path, tmp_path: Path) -> None:
    assert weigh(*run_of(pair, tmp_path)) is None
    found = [
        weigh(*run_of(pair, tmp_path, {"weighting.by": "alignment", "weighting.negative": name}))
        for name in (None, "base", "rtn")
    ]
    shapes = [weights.shape for weights in found if weights is not None]
    assert shapes == [(6, 32)] * 3
    assert torch.equal(found[0], found[1])  # type: ignore[arg-type]  # there are weights
    assert not torch.equal(found[1], found[2])  # type: ignore[arg-type]


def made(pair: Path, output: Path, settings: Settings, *, base: bool = True) -> QuantizationResult:
    recipe = small_recipe(pair / "text.txt", **settings)
    given = pair / "base" if base else None
    return quantize(pair / "aligned", given, recipe, output, cache_dir=output.parent / "cache", quiet=True)


def test_without_a_base_the_rounded_model_is_the_negative_and_the_ledger_says_so(pair: Path, tmp_path: Path) -> None:
    for base, name, expected in ((False, None, ["no-base"]), (False, "rtn", []), (True, None, [])):
        chosen = {**LAST, "objective.negative": name}
        result = made(pair, tmp_path / f"{base}-{name}", chosen, base=base)
        assert [entry.event for entry in result.ledger if entry.stage == "teach"] == expected
    stood_in, asked = (tmp_path / name for name in ("False-None", "False-rtn"))
    shards = [sorted(path.glob("*.safetensors")) for path in (stood_in, asked)]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]


def test_weights_reach_the_learner_and_the_quantizer_where_they_are_wanted(pair: Path, tmp_path: Path) -> None:
    unlearned: Settings = {"learn": [], "weighting.negative": "prompt", "negatives.system_prompt": "Say yes."}
    variants: dict[str, Settings] = {
        "uniform": unlearned,
        "alignment": {**unlearned, "weighting.by": "alignment"},
        "learned": {**LAST, "objective.name": "kl-top", "weighting.by": "alignment", "weighting.statistics": False},
        "learned alike": {**LAST, "objective.name": "kl-top"},
    }
    for name, settings in variants.items():
        made(pair, tmp_path / name, settings)
    content = {
        name: [path.read_bytes() for path in sorted((tmp_path / name).glob("*.safetensors"))] for name in variants
    }
    assert content["uniform"] != content["alignment"]
    assert content["learned"] != content["learned alike"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the tokenizer has no chat template"),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "leaves a system's"),
        ("{{ raise_exception('System role not supported') }}", "refuses it: System role not supported"),
    ],
)
def test_a_model_without_a_system_s_turn_is_refused_before_compute(
    template: str | None, message: str, tmp_path: Path
) -> None:
    aligned, _ = write_pair(tmp_path)
    tokenizer = load_tokenizer(aligned)
    for file in (aligned / "chat_template.jinja", aligned / "chat_template.json"):
        file.unlink(missing_ok=True)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(aligned)
    recipe = small_recipe(tmp_path / "text.txt", **{"objective.negative": "prompt"})
    with pytest.raises(
        InvalidInput, match=rf"objective\.negative: .*{message}.*; set objective\.negative to rtn or base"
    ):
        check_recipe(open_pair(aligned, None), recipe)


def test_a_system_s_turn_that_leaves_no_room_is_refused_before_compute(pair: Path) -> None:
    recipe = small_recipe(pair / "text.txt", **{"objective.negative": "prompt", "negatives.system_prompt": "a b " * 99})
    with pytest.raises(InvalidInput, match=r"and the model reads 128; shorten negatives\.system_prompt, or lower data"):
        check_recipe(open_pair(pair / "aligned", None), recipe)
    assert len(system_turn(load_tokenizer(pair / "aligned"), Recipe().negatives.system_prompt)) > 10
