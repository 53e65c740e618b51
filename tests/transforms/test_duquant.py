"""DuQuant's construction: outliers are spread over their block, and blocks are made alike."""

from __future__ import annotations

import torch
from torch import Tensor

from caq.observe import observe
from caq.student import Student
from caq.transforms.duquant import DuQuant
from caq.transforms.maps.permuted_rotations import outlier_rotation, random_signs, spreading, zigzag
from tests.support.tiny import tiny_model
from tests.support.transforming import IDS, bound_to, plan_of, relative_error, student_logits

BLOCK, FEATURES = 32, 128
SIGNS = random_signs(256, BLOCK, torch.Generator().manual_seed(0))


def activations(*outliers: tuple[int, float]) -> Tensor:
    """Tokens of a standard normal, with a few channels that are larger by factors."""
    x = torch.randn(256, FEATURES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for channel, factor in outliers:
        x[:, channel] *= factor
    return x


def test_one_rotation_spreads_a_lone_outlier_over_its_block_and_the_second_over_all_blocks() -> None:
    """What the paper's sections 3.2 and 3.3 promise: nearly the smallest largest entry that a rotation can leave."""
    lone = torch.zeros(1, FEATURES, dtype=torch.float64)
    lone[0, 37] = 1000.0
    (rotation,) = outlier_rotation(lone.reshape(-1, BLOCK)[1:2], SIGNS[:1])
    torch.testing.assert_close(rotation[5].abs(), torch.full((BLOCK,), BLOCK**-0.5, dtype=torch.float64))
    spread = spreading(lone[0], SIGNS).apply(lone)
    torch.testing.assert_close(spread.norm(), lone.norm())
    assert spread.abs().max() < 2 * 1000 / FEATURES**0.5


def test_largest_activations_fall_by_outlier_rotations_and_no_step_is_taken_that_raises_them() -> None:
    x = activations((3, 100.0), (37, 50.0), (38, 20.0))
    magnitudes = x.abs().amax(0)
    operator = spreading(magnitudes, SIGNS)
    assert operator.apply(x).abs().max() < x.abs().max() / 4
    rows = magnitudes.reshape(-1, BLOCK)
    longer = [(rows[:, None] @ outlier_rotation(rows, SIGNS[:steps])).abs().amax((-2, -1)) for steps in (0, 4, 64)]
    assert torch.equal(longer[0], rows.amax(-1))
    assert (longer[1] <= longer[0]).all()
    assert (longer[2] <= longer[1]).all()
    # Of channels that are all alike nothing is rotated.
    alike = outlier_rotation(torch.ones(2, BLOCK, dtype=torch.float64), SIGNS)
    assert torch.equal(alike, torch.eye(BLOCK, dtype=torch.float64).repeat(2, 1, 1))


def test_the_operator_is_orthogonal_and_keeps_products() -> None:
    operator = spreading(activations((3, 100.0)).abs().amax(0), SIGNS)
    dense = operator.apply(torch.eye(FEATURES, dtype=torch.float64))
    torch.testing.assert_close(dense @ dense.mT, torch.eye(FEATURES, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_zigzag_deals_every_channel_once_and_gives_blocks_one_sum() -> None:
    magnitudes = torch.arange(24.0)[torch.randperm(24, generator=torch.Generator().manual_seed(2))]
    order = zigzag(magnitudes, 3)
    assert sorted(order.tolist()) == [*range(24)]
    dealt = magnitudes[order].reshape(3, 8)
    assert dealt[:, 0].tolist() == [23, 22, 21]
    assert dealt[:, 1].tolist() == [18, 19, 20]
    # Equal steps cancel between the ways forth and back.
    assert dealt.sum(-1).tolist() == [92, 92, 92]


def test_the_plan_is_built_from_what_is_observed_and_keeps_the_function() -> None:
    bound = bound_to(tiny_model("llama"))
    plan = plan_of(bound, [DuQuant(block_size=16, rotation_steps=8)])
    built = plan.built(observe(bound, plan, IDS))
    assert built.start({}) == {}
    name = "block.1.mlp_inner_duquant"
    x = torch.eye(bound.shape.intermediate, dtype=torch.float64)
    before, after = (one.operators({})[name].apply(x) for one in (plan, built))
    assert not torch.equal(before, after)
    found = student_logits(Student(bound, built, checkpointing=False), {})
    assert relative_error(found, bound.model(IDS).logits) < 1e-5
