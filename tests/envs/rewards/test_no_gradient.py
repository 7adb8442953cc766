"""Rewards without a gradient, each against its formula by hand."""

from __future__ import annotations

import pytest
import torch

from prunegym import load_dataset, make_task, shipped_model
from prunegym.envs.rewards.no_gradient import Abstain, CostlyErrors, Deadline, HardCap, SharedBudget, WorstClass
from prunegym.envs.rewards.outcome import Outcome
from prunegym.errors import InvalidInputError, MissingDataError
from prunegym.models.timing.latency_table import Axis, LatencyTable, Part
from prunegym.user_code import described


@pytest.fixture(scope="module")
def model():
    return shipped_model("digits")


def outcome(model, predicted, labels, shares, mask=None, sharp=10.0):
    """Return an outcome with these answers; `sharp` is the logit of the answer, the others have 0."""
    count = len(labels)
    mask = torch.ones(count, model.masked.mask_size) if mask is None else mask
    return Outcome(
        logits=sharp * torch.eye(10)[torch.tensor(predicted)], labels=torch.tensor(labels), indices=torch.arange(count),
        mask=mask, kept=mask.double().sum(1), mac_share=torch.tensor(shares, dtype=torch.float64),
        penalty=torch.zeros(count), masked=model.masked, dataset=load_dataset("digits", "test"), dense=lambda: None,
    )  # fmt: skip


def test_a_hard_cap(model):
    paid = HardCap(0.5)(outcome(model, [1, 1, 2, 3], [1, 1, 2, 4], [0.4, 0.5, 0.6, 0.1]))
    assert paid.tolist() == [1, 1, 0, 0]


def test_costly_errors(model):
    prices = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    paid = CostlyErrors(prices, 2.0)(outcome(model, [1, 1, 3], [1, 5, 9], [0.5, 0.25, 1.0]))
    assert paid.tolist() == [-1.0, -6.5, -12.0]
    with pytest.raises(InvalidInputError, match="There are 2 prices, for 10 classes"):
        CostlyErrors((1, 2), 0.0)(outcome(model, [1], [1], [0.5]))


def test_the_worst_class(model):
    labels, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 5, 1, 5, 2]  # right: 2 of 3, 1 of 2, 1 of 1
    paid = WorstClass(0.5)(outcome(model, predicted, labels, [0.2] * 6))
    assert paid.mean().item() == pytest.approx(1 / 2 - 0.5 * 0.2)
    assert (paid > 0).tolist() == [False, False, False, True, False, False]


def test_abstention(model):
    unsure = Abstain(0.9, 0.2, 0.1)(outcome(model, [1, 2], [1, 1], [1.0, 1.0], sharp=1.0))
    assert unsure.tolist() == pytest.approx([-0.3, -0.3])
    sure = Abstain(0.9, 0.2, 0.1)(outcome(model, [1, 2], [1, 1], [1.0, 1.0]))
    assert sure.tolist() == pytest.approx([0.9, -1.1])


def test_a_shared_budget(model):
    # Two groups of two: images 0 and 2 spend 0.5 in the mean, 1 and 3 spend 0.7.
    paid = SharedBudget(0.6, 2)(outcome(model, [1, 1, 1, 1], [1, 1, 2, 1], [0.2, 0.9, 0.8, 0.5]))
    assert paid.tolist() == [1, 0, 0, 0]


def test_a_deadline(model, tmp_path):
    gates = tuple((gate.name, gate.width) for gate in model.masked.gates)
    (_, width), *_ = gates
    # Only the first gate takes time: 1 ms for all of it, a step at half of it.
    axis, none = Axis({0: 1.0}, 0.0, (0.0, width / 2, float(width))), Axis({}, 1.0, (1.0,))
    table = LatencyTable("torch", gates, 1e-4, (Part("first", axis, none, ((0.0,), (2e-4,), (1e-3,))),))
    table.save(tmp_path / "table.json")
    half, few = torch.ones(3, model.masked.mask_size), width // 2
    half[1, few:width] = 0
    half[2, few - 1 : width] = 0
    reward = Deadline(0.3, str(tmp_path / "table.json"))
    assert table.seconds(half).tolist()[1] == pytest.approx(3e-4)
    assert reward(outcome(model, [1, 1, 1], [1, 2, 1], [1.0] * 3, half)).tolist() == [0, 0, 1]
    before = described(reward)
    LatencyTable("torch", gates, 2e-4, table.parts).save(tmp_path / "table.json")
    assert described(Deadline(0.3, str(tmp_path / "table.json"))) != before
    with pytest.raises(MissingDataError, match="There is no latency table"):
        Deadline(0.3, str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: HardCap(0.0),
        lambda: HardCap("x"),
        lambda: CostlyErrors((-1,), 0.0),
        lambda: WorstClass(float("nan")),
        lambda: Abstain(2.0, 0.1, 0.1),
        lambda: SharedBudget(0.5, 0),
    ],
)
def test_wrong_parameters_are_refused(make):
    with pytest.raises(InvalidInputError):
        make()


def test_other_parameters_are_other_settings():
    assert described(HardCap(0.2)) != described(HardCap(0.3))
    assert described(CostlyErrors((1.0, 2.0), 0.1)) != described(CostlyErrors((1.0, 3.0), 0.1))


def test_environments_take_them(model):
    task = make_task(model=model, dataset="digits", split="test", reward=HardCap(0.5))
    assert task.reward.name == "HardCap"
