from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from prunegym.errors import InvalidInputError
from prunegym.models import Dataset, ImitationConfig, MaskedCNN, PrepareConfig, TuneConfig, prepare, taylor_scores
from prunegym.models.training.mac_target import total_mac_share

CONFIG = PrepareConfig(
    imitation=ImitationConfig(steps=20, kept_share=0.6), tune=TuneConfig(0.55, epochs=6, batch_size=64), hidden=8
)


def test_preparation_meets_its_target_and_leaves_the_given_network(
    digits_cnn: torch.nn.Module, digits: Dataset, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in digits_cnn.state_dict().items()}
    stages: list[str] = []
    masked, policy = prepare(
        digits_cnn, digits, CONFIG, folder=tmp_path, report=lambda stage, _row: stages.append(stage)
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in digits_cnn.state_dict().items())
    assert masked.frozen
    assert abs(total_mac_share(masked, policy, digits) - 0.55) < 0.02
    assert stages == ["tune"] * 6
    again, same = prepare(
        digits_cnn, digits, CONFIG, folder=str(tmp_path), report=lambda stage, _row: stages.append(stage)
    )
    assert stages == ["tune"] * 6, "a finished preparation does nothing anew"
    for one, other in ((masked, again), (policy, same)):
        assert all(
            torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        )


def test_taylor_scores_equal_a_loop_over_images(digits_masked: MaskedCNN, digits: Dataset) -> None:
    some = digits.subset(torch.arange(6))
    expected = torch.zeros(48)
    for index in range(6):
        mask = torch.ones(1, 48, requires_grad=True)
        output = digits_masked(some.batch(torch.tensor([index])), mask)
        torch.nn.functional.cross_entropy(output, some.labels[index : index + 1]).backward()
        expected += mask.grad[0] ** 2 / 6
    torch.testing.assert_close(taylor_scores(digits_masked, some), expected, rtol=1e-4, atol=1e-8)


def test_images_and_classes_that_do_not_fit_are_told_at_once(digits_masked: MaskedCNN, digits: Dataset) -> None:
    large = dataclasses.replace(digits, images=digits.images.repeat(1, 1, 2, 2))
    with pytest.raises(InvalidInputError, match=r"takes images of shape \(1, 8, 8\), those of data set 'digits' have"):
        prepare(digits_masked, large, CONFIG)
    more = dataclasses.replace(digits, classes=tuple(map(str, range(12))))
    with pytest.raises(InvalidInputError, match=r"output per image has shape \(10,\), but data set .* has 12 classes"):
        prepare(digits_masked, more, CONFIG)
