from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from prunegym.errors import InvalidInputError
from prunegym.models import Dataset, GatePolicy, ImitationConfig, MaskedCNN, MaskFeatures, imitate, rollout
from prunegym.models.gating.importance import channel_scores, keep_best
from prunegym.models.training.preparation import FollowMask, imitation_loss


def test_scores_equal_a_computation_with_hooks(digits_masked: MaskedCNN, digits: Dataset) -> None:
    images = digits.batch(torch.arange(4))
    network = digits_masked.network
    seen: dict[str, torch.Tensor] = {}
    convs = {"features.0": "features.2", "features.3": "features.5"}
    for conv, activation in convs.items():
        network.get_submodule(conv).register_forward_pre_hook(lambda _m, args, name=conv: seen.update({name: args[0]}))
        network.get_submodule(activation).register_forward_hook(
            lambda _m, _args, output, name=activation: seen.update({name: output})
        )
    with torch.no_grad():
        network(images)
    # MACs of one channel more, with all others on: its own filter, and what reads it.
    price = {"features.0": 9 * 64 + 32 * 9 * 16, "features.3": 16 * 9 * 16 + 4 * 10}
    expected = []
    for conv, activation in convs.items():
        rms = seen[activation].pow(2).mean((2, 3)).sqrt() / seen[conv].pow(2).mean((1, 2, 3)).sqrt()[:, None]
        expected.append(rms / (price[conv] / max(price.values())) ** 0.5)
    torch.testing.assert_close(channel_scores(digits_masked, images), torch.cat(expected, 1), rtol=1e-4, atol=1e-6)


def test_keep_best_keeps_the_highest_of_each_row() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    assert keep_best(scores, 0.5).tolist() == [[1, 0, 1, 0], [0, 0, 1, 1]]
    assert keep_best(scores, 0.01).sum(1).tolist() == [1, 1]


def test_follow_mask_deals_the_mask_out_in_order(digits_masked: MaskedCNN, digits: Dataset) -> None:
    policy = GatePolicy(MaskFeatures(digits_masked), 4)
    mask = (torch.rand(3, 48, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    run = rollout(digits_masked, policy, digits.batch(torch.arange(3)), FollowMask(mask))
    assert torch.equal(run.mask, mask)
    torch.testing.assert_close(run.output, digits_masked(digits.batch(torch.arange(3)), mask))


def test_loss_gives_each_decision_the_same_weight(digits_masked: MaskedCNN) -> None:
    policy = GatePolicy(MaskFeatures(digits_masked), 4)
    logits, mask = torch.randn(5, 48, generator=torch.Generator().manual_seed(1)), torch.ones(5, 48)
    halves = [F.softplus(-part).mean() for part in (logits[:, :16], logits[:, 16:])]
    torch.testing.assert_close(imitation_loss(policy, logits, mask), (halves[0] + halves[1]) / 2)


def test_a_policy_learns_the_teachers_masks(digits_masked: MaskedCNN, digits: Dataset) -> None:
    policy = GatePolicy(MaskFeatures(digits_masked).calibrate(digits_masked, digits), 16)
    images = digits.batch(torch.arange(200))
    target = keep_best(channel_scores(digits_masked, images), 0.6)

    def agreement() -> float:
        logits = rollout(digits_masked, policy, images, FollowMask(target)).gate_logits
        return float(((logits > 0) == target.bool()).float().mean())

    before = agreement()
    rows: list[dict[str, float]] = []
    imitate(digits_masked, policy, digits, ImitationConfig(steps=300, kept_share=0.6), report=rows.append)
    assert before < 0.65
    assert agreement() > 0.85
    assert [row["step"] for row in rows] == [50, 100, 150, 200, 250, 300]


@pytest.mark.slow
def test_a_policy_of_all_lambdas_imitates_another_share_at_each(digits_masked: MaskedCNN, digits: Dataset) -> None:
    features = MaskFeatures(digits_masked).calibrate(digits_masked, digits)
    torch.manual_seed(0)
    policy = GatePolicy(features, 16, penalty_range=(0.1, 0.9))
    imitate(digits_masked, policy, digits, ImitationConfig(steps=400, mac_share=(0.8, 0.3)))
    images = digits.batch(torch.arange(200))
    shares = [
        float(digits_masked.cost.mac_share(rollout(digits_masked, policy, images, penalty=value).mask).mean())
        for value in (0.1, 0.5, 0.9)
    ]
    assert shares[0] == pytest.approx(0.8, abs=0.1)
    assert shares[0] > shares[1] + 0.05
    assert shares[1] > shares[2] + 0.05
    one = GatePolicy(features, 16)
    with pytest.raises(
        InvalidInputError, match=r"mac_share is \(0\.8, 0\.3\), for a range of lambdas, but the policy is"
    ):
        imitate(digits_masked, one, digits, ImitationConfig(mac_share=(0.8, 0.3)))


@pytest.mark.parametrize("shares", [(0.5, 1.5), (0, 0.5)])
def test_shares_out_of_range(shares: tuple[float, float]) -> None:
    with pytest.raises(InvalidInputError, match=r"mac_share is (1\.5|0); a finite number above 0 and at most 1 is"):
        ImitationConfig(mac_share=shares)
    with pytest.raises(InvalidInputError, match=r"one share, or two for a range of lambdas, is needed\."):
        ImitationConfig(mac_share=(0.5, 0.6, 0.7))


def test_kept_share_out_of_range() -> None:
    with pytest.raises(InvalidInputError, match=r"kept_share is 0; a finite number above 0 and at most 1"):
        ImitationConfig(kept_share=0)
