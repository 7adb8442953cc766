"""The static and the shuffled control, and the verdict."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import prunegym  # noqa: F401  (registers the ids)
from prunegym.agents.evaluation.evaluator import evaluate
from prunegym.agents.evaluation.masks import count_distinct, derangement, static_mask, verdict


def test_controls_of_masks_that_carry_the_label(two_channels, votes):
    """A mask per label is always right; the most often kept channel is right for 9 of 12; shuffled by count."""
    masks = nn.functional.one_hot(votes.labels, 2)
    result = evaluate(masks, two_channels, votes)
    shuffled = votes.labels[derangement(12)]
    assert result.accuracy == 1.0
    assert result.static_accuracy == 9 / 12
    assert result.shuffled_accuracy == pytest.approx((shuffled == votes.labels).double().mean().item())
    assert result.distinct_masks == 2
    assert result.kept_share == 0.5


def test_static_mask_rounds_the_mean_number_and_takes_the_most_frequent(two_channels):
    masks = torch.tensor([[1, 0], [1, 1], [1, 0], [0, 1]], dtype=torch.bool)  # 1.25 channels on average
    assert static_mask(masks, two_channels).tolist() == [True, False]
    masks = torch.tensor([[1, 1], [1, 0]], dtype=torch.bool)  # 1.5: rounded up
    assert static_mask(masks, two_channels).tolist() == [True, True]


@pytest.mark.parametrize("count", [2, 3, 10, 999])
def test_a_derangement_gives_every_image_another_one_and_uses_each_once(count):
    order = derangement(count)
    assert sorted(order.tolist()) == list(range(count))
    assert not (order == torch.arange(count)).any()
    assert torch.equal(order, derangement(count))


def test_distinct_masks_are_counted_past_a_byte():
    masks = torch.zeros(5, 13, dtype=torch.bool)
    masks[1, 12] = True
    masks[2, 0] = True
    assert count_distinct(masks) == 3


def correct_counts(own, other):
    """100 images: `own` only right under their own mask, `other` only under another's."""
    mine, theirs = torch.zeros(100, dtype=torch.bool), torch.zeros(100, dtype=torch.bool)
    mine[:own] = True
    theirs[own : own + other] = True
    return mine, theirs


@pytest.mark.parametrize(("own", "other", "static"), [(4, 0, True), (5, 0, False), (20, 10, True), (21, 9, False)])
def test_verdict_at_two_standard_errors(own, other, static):
    """(own - other) / sqrt(own + other) is 2, 2.24, 1.83 and 2.19."""
    found, sentence = verdict(*correct_counts(own, other), 50)
    assert found is static
    points = own - other
    expected = (
        f"Static in effect: other images' masks do as well ({-points:+.1f} points, within two standard errors), so "
        "its 50 masks do not depend usefully on the image."
        if static
        else f"The masks depend on the image: those of other images lose {points:.1f} points, "
        f"{points / math.sqrt(own + other):.1f} standard errors."
    )
    assert sentence == expected


def test_shuffled_masks_that_do_better_make_a_policy_static():
    found, sentence = verdict(*correct_counts(0, 30), 50)
    assert found
    assert "(+30.0 points" in sentence
