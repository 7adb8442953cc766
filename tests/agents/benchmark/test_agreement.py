"""Claims compared with an evaluation on another machine, for what the small benchmark does not have."""

from __future__ import annotations

import pytest
import torch

from prunegym.agents.benchmark.validation.agreement import Again, differences
from prunegym.agents.comparison.results import Result
from prunegym.agents.evaluation.evaluator import evaluate
from prunegym.models import MaskedCNN, build, load_dataset


@pytest.fixture(scope="module")
def few():
    return load_dataset("digits", "test").subset(torch.arange(400))


@pytest.fixture(scope="module")
def masked(few):
    torch.manual_seed(0)
    return MaskedCNN(build("simple-cnn", 10, 1, 8), few.batch(torch.arange(1))).freeze()


@pytest.fixture
def claim(masked, few):
    """Evaluate masks, and the same with those of two images turned around."""
    masks = torch.rand(400, 48, generator=torch.Generator().manual_seed(0)) < 0.5

    def claim(constants=None):
        masked.compensate(constants)
        there, others = masks.clone(), masks.clone()
        others[:2, :4] = ~others[:2, :4]
        found, claimed = evaluate(there, masked, few), Result.of(evaluate(others, masked, few))
        again = Again(found, Result.of(found), masked, False, lambda: evaluate(there.roll(1, 0), masked, few).correct)
        return claimed, again

    yield claim
    masked.compensate(None)


def test_adding_constants_costs_what_the_masks_need(claim):
    """Elsewhere, other masks of a few images change the MACs of adding their constants."""
    claimed, again = claim(torch.linspace(-1, 1, 48))
    gap = abs(claimed.figures["policy_mac_share"] - again.evaluation.policy_mac_share)
    assert 1e-6 < gap < 0.002
    wrong = [one for one in differences(claimed, again, 0.5) if "mac" in one]
    assert wrong == []
    claimed.figures["policy_mac_share"] += 0.003
    assert [one.split(" is ")[0] for one in differences(claimed, again, 0.5)] == ["policy_mac_share"]


def test_without_constants_deciding_costs_the_same_everywhere(claim):
    claimed, again = claim()
    assert differences(claimed, again, 0.5) == []
    claimed.figures["policy_mac_share"] += 1e-4
    assert [one.split(" is ")[0] for one in differences(claimed, again, 0.5)] == ["policy_mac_share"]


def test_one_mask_for_all_has_its_constants_at_no_cost(masked, few):
    """One image with another mask makes adding constants count, for all images."""
    masked.compensate(torch.linspace(-1, 1, 48))
    one = torch.arange(48).expand(400, -1) % 2 > 0
    other = one.clone()
    other[0] = True
    found, claimed = evaluate(one, masked, few), Result.of(evaluate(other, masked, few))
    again = Again(found, Result.of(found), masked, False, lambda: found.correct)
    assert not any("not those of their masks" in text for text in differences(claimed, again, 0.5))
    masked.compensate(None)


@pytest.mark.parametrize(("change", "fine"), [(1e-5, True), (0.01, False)])
def test_scores_are_rounded_elsewhere(claim, change, fine):
    """Every score may have other last digits; with another metric than right or wrong none would be equal."""
    claimed, again = claim()
    scores = torch.linspace(-1, 1, 400, dtype=torch.float64)
    again.result.__dict__["correct"] = scores
    claimed.__dict__["correct"] = scores + change * torch.tensor([1.0, -1.0]).repeat(200)
    found = any("answered otherwise" in one for one in differences(claimed, again, 0.5))
    assert found != fine
