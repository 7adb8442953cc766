"""Metrics and losses, by scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.tasks import losses, metrics

GENERATOR = torch.Generator().manual_seed(0)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def test_class_metrics_average_to_scikit_learns() -> None:
    outputs, targets = noise(60, 7), torch.randint(7, (60,), generator=GENERATOR)
    assert metrics.correct(outputs, targets).mean().item() == pytest.approx(
        reference.accuracy_score(targets, outputs.argmax(1))
    )
    chances = outputs.double().softmax(1).numpy()
    assert -metrics.log_likelihood(outputs, targets).mean().item() == pytest.approx(
        reference.log_loss(targets, chances, labels=range(7))
    )
    assert metrics.top5(outputs, targets).mean().item() == pytest.approx(
        reference.top_k_accuracy_score(targets, chances, k=5, labels=range(7))
    )
    assert metrics.probability(outputs, targets)[3].item() == pytest.approx(chances[3, targets[3]])


def test_metrics_of_several_labels_are_scikit_learns() -> None:
    outputs, targets = noise(40, 5), torch.randint(2, (40, 5), generator=GENERATOR)
    outputs[0], targets[0] = -1, 0  # nothing there, nothing found
    given = (outputs > 0).numpy()
    assert metrics.f1(outputs, targets).mean().item() == pytest.approx(
        reference.f1_score(targets, given, average="samples", zero_division=1)
    )
    assert metrics.labels_right(outputs, targets).mean().item() == pytest.approx(
        1 - reference.hamming_loss(targets, given)
    )
    assert metrics.all_labels_right(outputs, targets).mean().item() == pytest.approx(
        reference.accuracy_score(targets, given)
    )


@pytest.mark.parametrize("shape", [(30,), (30, 4)])
def test_metrics_of_numbers_are_scikit_learns(shape: tuple[int, ...]) -> None:
    targets = noise(*shape)
    outputs = noise(30, shape[1] if len(shape) > 1 else 1)
    pair = targets.reshape(outputs.shape).numpy(), outputs.numpy()
    assert metrics.squared_error(outputs, targets).mean().item() == pytest.approx(-reference.mean_squared_error(*pair))
    assert metrics.absolute_error(outputs, targets).mean().item() == pytest.approx(
        -reference.mean_absolute_error(*pair)
    )


def test_numbers_of_another_size_are_not_broadcast() -> None:
    with pytest.raises(RuntimeError):
        metrics.squared_error(noise(4, 3), noise(4))


def test_map_metrics_leave_out_unknown_positions() -> None:
    outputs, targets = noise(6, 3, 5, 4), torch.randint(3, (6, 5, 4), generator=GENERATOR)
    targets[:, 0] = -1
    targets[5] = -1
    for image in range(5):
        true, given = targets[image, 1:].flatten(), outputs[image].argmax(0)[1:].flatten()
        assert metrics.positions_right(outputs, targets)[image].item() == pytest.approx(
            reference.accuracy_score(true, given)
        )
        labels = np.union1d(true, given)
        assert metrics.iou(outputs, targets)[image].item() == pytest.approx(
            reference.jaccard_score(true, given, average="macro", labels=labels)
        )
    assert metrics.positions_right(outputs, targets)[5] == 1


@pytest.mark.parametrize("inner", [(), (4, 3)])
def test_agreement_is_the_share_of_equal_classes(inner: tuple[int, ...]) -> None:
    first, second = noise(5, 3, *inner), noise(5, 3, *inner)
    equal = (first.numpy().argmax(1) == second.numpy().argmax(1)).reshape(5, -1).mean(1)
    assert metrics.agreement(first, second).numpy() == pytest.approx(equal)
    with pytest.raises(InvalidInputError, match="squared_error"):
        metrics.agreement(first[:, :1], second[:, :1])


def test_cross_entropy_by_hand_with_weights_and_more_outputs_than_classes() -> None:
    outputs, targets, weights = noise(8, 4), torch.tensor([0, 1, 2, 1, 0, 2, 2, 1]), torch.tensor([1.0, 2.0, 0.5])
    chances = outputs.double().softmax(1)
    each = torch.tensor([-math.log(chances[row, target]) for row, target in enumerate(targets)])
    assert losses.cross_entropy(outputs, targets).item() == pytest.approx(each.mean().item(), rel=1e-5)
    by_weight = weights[targets]
    expected = (each * by_weight).sum() / by_weight.sum()
    assert losses.cross_entropy(outputs, targets, weights).item() == pytest.approx(expected.item(), rel=1e-5)


def test_losses_have_their_smallest_value_at_the_target() -> None:
    for name, targets in {
        "binary_cross_entropy": torch.tensor([[0, 1, 1], [1, 0, 0]]),
        "squared_error": noise(2, 3),
        "absolute_error": noise(2, 3),
        "soft_cross_entropy": noise(2, 3),
        "soft_binary_cross_entropy": noise(2, 3),
    }.items():
        best = (targets * 2.0 - 1) * 5 if name == "binary_cross_entropy" else targets
        lowest = losses.LOSSES[name](best, targets, None)
        turned = best - best.sign() * (1 + 2 * best.abs())
        assert losses.LOSSES[name](turned, targets, None) > lowest, name


def test_soft_cross_entropy_of_maps_is_that_of_their_positions() -> None:
    outputs, teacher = noise(3, 4, 2, 2), noise(3, 4, 2, 2)
    rows = [maps.permute(0, 2, 3, 1).reshape(-1, 4) for maps in (outputs, teacher)]
    assert torch.allclose(losses.soft_cross_entropy(outputs, teacher), losses.soft_cross_entropy(*rows))
