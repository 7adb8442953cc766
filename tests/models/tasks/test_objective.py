"""Objectives: kinds of targets, their defaults, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.tasks.objective import KINDS, Objective, balanced_weights, kind_of, spread_of

TARGETS = {
    "classes": (torch.tensor([2, 0, 1]), (3,)),
    "labels": (torch.tensor([[1, 0], [0, 0], [1, 1]]), (2,)),
    "numbers": (torch.tensor([0.5, -1.0, 2.0]), (1,)),
    "maps": (torch.randint(3, (3, 4, 5)), (3, 4, 5)),
}


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets).square().sum()


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_are_known_by_their_form_and_defaults_fit(kind: str) -> None:
    targets, shape = TARGETS[kind]
    assert kind_of(targets) == kind
    Objective(kind).check(shape, targets)
    outputs = torch.randn(3, *shape, requires_grad=True)
    assert Objective(kind).score(outputs, targets).shape == (3,)
    assert Objective(kind).distance(outputs, torch.randn(3, *shape)).requires_grad
    others = {"classes": (3, 4, 5), "labels": (5,), "numbers": (4,), "maps": (3, 2, 5)}
    with pytest.raises(InvalidInputError, match="does not fit"):
        Objective(kind).check(others[kind], targets)


@pytest.mark.parametrize("targets", [torch.zeros(2, 2, 2, 2), torch.zeros(2, 2, 2, 2, dtype=torch.int64)])
def test_other_targets_are_refused(targets: Tensor) -> None:
    with pytest.raises(InvalidInputError, match="several labels per image"):
        kind_of(targets)


def test_your_own_loss_by_function_and_by_path() -> None:
    outputs, targets = torch.tensor([[1.0], [3.0]], requires_grad=True), torch.tensor([0.0, 1.0])
    path = "tests.models.tasks.test_objective:own_loss"
    for loss in (own_loss, path):
        objective = Objective("numbers", loss=loss)
        objective.check((1,), targets)
        assert objective.loss_of(outputs, targets).item() == 5.0
        assert objective.as_json()["loss"] == path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": lambda outputs, targets: outputs}, r"returned \(2, 1\)"),
        ({"loss": lambda outputs, targets: outputs.detach().sum()}, "has no gradient"),
        ({"loss": lambda outputs, targets: outputs.sum() / 0}, "finite"),
        ({"loss": "cross_entropy"}, "'cross_entropy' does not fit"),
        ({"metric": lambda outputs, targets: outputs.sum()}, r"metric .* returned \(\)"),
        ({"metric": "f1"}, "metric 'f1'"),
    ],
)  # fmt: skip
def test_a_loss_or_metric_that_does_not_fit_is_an_error_before_training(options: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Objective("numbers", **options).check((1,), torch.tensor([0.5, 1.0, 2.0]))


def test_unknown_names_and_wrong_weights() -> None:
    with pytest.raises(UnknownNameError, match="cross_entropy"):
        Objective(loss="crossentropy")
    with pytest.raises(UnknownNameError, match="explained"):
        Objective(metric="explain")
    with pytest.raises(InvalidInputError, match="is a int"):
        Objective(metric=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="class weight"):
        Objective(class_weights=(1.0, -1.0))


def test_explained_averages_to_r_squared() -> None:
    targets, outputs = torch.randn(50, 1), torch.randn(50, 1)
    objective = Objective("numbers", spread=spread_of(targets))
    assert objective.score(outputs, targets).mean().item() == pytest.approx(r2_score(targets, outputs))
    assert spread_of(torch.ones(4)) == 1


def test_balanced_weights_are_scikit_learns() -> None:
    targets = torch.tensor([0, 0, 0, 1, 3, 3, -1])
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=targets[:-1].numpy())
    assert balanced_weights(targets, 5) == pytest.approx([expected[0], expected[1], 0, expected[2], 0])


def test_outputs_as_targets_are_agreement_with_them() -> None:
    teacher = torch.randn(6, 4)
    objective = Objective("outputs")
    objective.check((4,), teacher)
    assert objective.score(teacher, teacher).tolist() == [1.0] * 6
    assert objective.loss_of(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    assert [objective.name(part) for part in ("loss", "metric")] == [KINDS["outputs"].loss, KINDS["outputs"].metric]
