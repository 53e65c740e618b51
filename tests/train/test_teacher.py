"""The teacher cache: what direct computation gives, computed once, one model in memory at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from caq.errors import CaqError
from caq.families import Bound
from caq.objectives import UNLABELLED, Objective, Teachers
from caq.objectives.bounded import JensenShannon, PositivePart
from caq.objectives.full import ContrastiveKullbackLeibler, KullbackLeibler, MeanSquaredError
from caq.objectives.gap import Hinge, SigmoidGap
from caq.objectives.next_token import CrossEntropy
from caq.objectives.restricted import ContrastiveAlignment, ContrastiveTopKullbackLeibler, TopKullbackLeibler
from caq.train import teacher
from caq.train.teacher import TeacherCache, cache_hidden, cache_targets
from caq.world import World
from tests.support.learning import DTYPE, IDS, hidden_states, teach, tiny_bound

OBJECTIVES: dict[str, Objective] = {
    "mse": MeanSquaredError(),
    "kl": KullbackLeibler(),
    "kl-top": TopKullbackLeibler(pull_k=9),
    "contrastive-kl": ContrastiveKullbackLeibler(),
    "contrastive-kl-top": ContrastiveTopKullbackLeibler(pull_k=9, push_k=5),
    "cal": ContrastiveAlignment(pull_k=9, push_k=5),
    "cal, logits, K beyond the vocabulary": ContrastiveAlignment(pull_k=500, push_k=5, difference="logit"),
    "cross-entropy": CrossEntropy(),
    "hinge": Hinge(pull_k=9, push_k=5),
    "sigmoid-gap": SigmoidGap(pull_k=9, push_k=5),
    "jensen-shannon": JensenShannon(pull_k=9, push_k=5),
    "positive-part": PositivePart(pull_k=9),
    "cal, not renormalised": ContrastiveAlignment(pull_k=9, push_k=500, renormalize=False),
}


class Counted:
    """Loads the tiny model of a seed and counts how often."""

    def __init__(self, seed: int) -> None:
        self.seed, self.loads = seed, 0

    def __call__(self) -> Bound:
        self.loads += 1
        return tiny_bound(self.seed)


def directories(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def dense(targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Targets on S as rows over the vocabulary, so that the order of S does not matter."""
    found = {}
    for key, values in targets.items():
        if key.endswith("log_prob"):
            # What has no index of its own is on the pulled tokens.
            index = targets.get(f"{key.partition('_')[0]}_index", targets["pull_index"]).long()
            found[key] = torch.full((len(index), 64), -torch.inf).scatter(1, index, values)
        elif not key.endswith("index"):
            found[key] = values
    return found


@pytest.mark.parametrize("chunk", [7, 256])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_targets_are_those_of_the_models_own_logits(
    name: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = OBJECTIVES[name]
    monkeypatch.setattr(teacher, "CHUNK", chunk)
    cache = teach(tmp_path, objective)
    models = [tiny_bound(seed).model for seed in (0, 1)]
    for sample in (0, 7):
        aligned, base = (model(IDS[sample][None]).logits[0] for model in models)
        labels = torch.cat([IDS[sample][1:], torch.tensor([UNLABELLED])])
        expected = objective.targets(Teachers(aligned, base if objective.needs_negative else None, labels))
        found = cache.expand(cache.read(sample))
        assert found.keys() == expected.keys()
        for key, value in dense(found).items():
            torch.testing.assert_close(value, dense(expected)[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["kl-top", "cal"])
def test_only_indices_and_log_probabilities_on_s_are_stored(name: str, tmp_path: Path) -> None:
    cache = teach(tmp_path, OBJECTIVES[name])
    rows = cache.read(3)
    sides = ["pull", "push"] if name == "cal" else ["pull"]
    assert rows.keys() == {f"{side}_{what}" for side in sides for what in ("index", "log_prob")}
    for key, value in rows.items():
        assert value.shape == (IDS.shape[1], 9 if key.startswith("pull") else 5)
        assert value.dtype == (torch.int32 if key.endswith("index") else torch.float32)
    assert not cache.heads


def test_a_second_run_loads_no_model(tmp_path: Path) -> None:
    counted = Counted(0)
    first = hidden_states(tmp_path, 0, counted)
    second = hidden_states(tmp_path, 0, counted)
    assert counted.loads == 1
    assert first == second
    objective = OBJECTIVES["kl-top"]
    written = []
    for _ in range(2):
        cache = cache_targets(objective, first, None, IDS, tmp_path, world=World(), quiet=True)
        files = cache.rows["targets"].directory.iterdir()
        written.append({path.name: path.stat().st_ino for path in files})
    assert len(written[0]) == len(IDS)
    assert written[0] == written[1]


def test_another_model_other_data_another_precision_are_computed_anew(tmp_path: Path) -> None:
    counted = Counted(0)

    def cache(fingerprint: str = "a", ids: Tensor = IDS, dtype: torch.dtype = DTYPE) -> None:
        cache_hidden(counted, fingerprint, ids, tmp_path, name="aligned", dtype=dtype, world=World(), quiet=True)

    variants: list[Callable[[], None]] = [
        cache,
        lambda: cache("b"),
        lambda: cache(ids=IDS.flip(0)),
        lambda: cache(ids=IDS[:5]),
        lambda: cache(ids=IDS.reshape(20, 10)),
        lambda: cache(dtype=torch.bfloat16),
    ]
    for run in variants:
        run()
    assert counted.loads == len(directories(tmp_path)) == len(variants)
    for run in variants:
        run()
    assert counted.loads == len(variants)


def test_targets_are_keyed_by_the_objective_s_settings_but_not_by_alpha(tmp_path: Path) -> None:
    aligned, base = hidden_states(tmp_path, 0), hidden_states(tmp_path, 1)

    def targets(objective: Objective) -> TeacherCache:
        return cache_targets(objective, aligned, base, IDS, tmp_path, world=World(), quiet=True)

    different: list[Objective] = [
        ContrastiveAlignment(pull_k=9, push_k=5),
        ContrastiveAlignment(pull_k=8, push_k=5),
        ContrastiveAlignment(pull_k=9, push_k=4),
        ContrastiveAlignment(pull_k=9, push_k=5, difference="logit"),
        ContrastiveAlignment(pull_k=9, push_k=5, renormalize=False),
        ContrastiveTopKullbackLeibler(pull_k=9, push_k=5),
        TopKullbackLeibler(pull_k=9),
    ]
    caches = [targets(objective) for objective in different]
    assert len({str(cache.rows["targets"].directory) for cache in caches}) == len(different)
    assert targets(ContrastiveAlignment(alpha=0.1, pull_k=9, push_k=5)) == caches[0]
    other_way = cache_targets(different[0], base, aligned, IDS, tmp_path, world=World(), quiet=True)
    assert other_way != caches[0]


def test_caching_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    whole = hidden_states(tmp_path / "whole", 0)
    runs: list[int] = []

    def stops_after(limit: int) -> Callable[[], Bound]:
        def count(*_: object) -> None:
            runs.append(limit)
            if len(runs) > limit:
                raise KeyboardInterrupt

        def load() -> Bound:
            bound = tiny_bound(0)
            bound.model.model.register_forward_pre_hook(count)
            return bound

        return load

    with pytest.raises(KeyboardInterrupt):
        hidden_states(tmp_path / "stopped", 0, stops_after(4))
    runs.clear()
    resumed = hidden_states(tmp_path / "stopped", 0, stops_after(100))
    assert len(runs) == len(IDS) - 4
    for sample in range(len(IDS)):
        assert torch.equal(resumed.read(sample)["hidden"], whole.read(sample)["hidden"])
    assert torch.equal(load_file(resumed.head.path)["head"], load_file(whole.head.path)["head"])
    assert not list(tmp_path.rglob("*.partial"))


def test_the_teachers_and_the_student_are_never_in_memory_together(tmp_path: Path) -> None:
    loaded: list[weakref.ref[nn.Module]] = []

    def load(seed: int) -> Callable[[], Bound]:
        def loads() -> Bound:
            gc.collect()
            assert [model for model in loaded if model() is not None] == []
            bound = tiny_bound(seed)
            loaded.append(weakref.ref(bound.model))
            return bound

        return loads

    aligned, base = hidden_states(tmp_path, 0, load(0)), hidden_states(tmp_path, 1, load(1))
    objective = OBJECTIVES["contrastive-kl"]
    cache = cache_targets(objective, aligned, base, IDS, tmp_path, world=World(), quiet=True)
    load(2)()
    assert len(loaded) == 3
    assert cache.heads.keys() == {"aligned", "negative"}


@pytest.mark.parametrize("damage", ["cut off", "emptied", "a flipped bit", "another sample's"])
def test_what_was_damaged_in_the_cache_is_named_and_made_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objective, counted = OBJECTIVES["kl-top"], Counted(0)
    hidden = hidden_states(tmp_path, 0, counted)
    targets = cache_targets(objective, hidden, None, IDS, tmp_path, world=World(), quiet=True).rows["targets"]
    files = [hidden.file(3).path, hidden.head.path, targets.file(3).path]
    whole = [path.read_bytes() for path in files]
    for path, content in zip(files, whole, strict=True):
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        other = path.with_name("00004.safetensors").read_bytes()
        path.write_bytes({"cut off": content[:-9], "emptied": b"", "a flipped bit": flipped}.get(damage, other))
    hidden = hidden_states(tmp_path, 0, counted)
    cache_targets(objective, hidden, None, IDS, tmp_path, world=World(), quiet=True)
    said = capsys.readouterr().err
    assert all(f"{path}: " in said for path in files)
    assert said.count("it is made again") == len(files)
    assert [path.read_bytes() for path in files] == whole
    assert counted.loads == 2


def test_a_file_that_goes_during_the_run_is_named(tmp_path: Path) -> None:
    hidden = hidden_states(tmp_path, 0)
    hidden.file(2).path.unlink()
    with pytest.raises(CaqError, match=r"00002\.safetensors: was changed during the run"):
        hidden.read(2)
