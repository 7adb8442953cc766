from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from prunegym.agents.baselines.static_masks import (
    BASELINES,
    greedy_static,
    learned_static,
    make_baseline,
    pruned_and_tuned,
    taylor_static,
)
from prunegym.agents.comparison.entries import Terms, trained_baseline_entry
from prunegym.agents.evaluation.evaluator import evaluate
from prunegym.agents.rl.lagrangian import gates_at_mac_share
from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models import CNNInfo, DynamicCNN, MaskedCNN, build, fixed_policy, load_dataset, taylor_scores
from prunegym.models.gating.importance import activations, at_mac_share, channel_scores, keep_best, l1_scores
from prunegym.models.storage.model_file import Bundle


def macs_of(first, second):
    """MACs of the 1-16-32 network on 8x8 images with so many channels kept."""
    return first * 9 * 64 + first * second * 9 * 16 + second * 4 * 10


FULL = macs_of(16, 32)
INFO = CNNInfo.of("simple-cnn", load_dataset("digits"))


def shares(masks):
    rows = masks.reshape(-1, 48).int()
    return [macs_of(int(row[:16].sum()), int(row[16:].sum())) / FULL for row in rows]


def best_first(scores, share):
    """Keep the best channels one by one until the mean share is reached: the loop that bisection stands for."""
    rows = scores.reshape(-1, 48)
    orders = [sorted(range(48), key=lambda channel, row=row: (-row[channel].item(), channel)) for row in rows]
    for count in range(1, 49):
        masks = torch.zeros(len(rows), 48, dtype=torch.bool)
        for mask, order in zip(masks, orders, strict=True):
            mask[order[:count]] = True
        if np.mean(shares(masks)) >= share - 1e-9:
            return masks.view(scores.shape)
    raise AssertionError


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("rows", [0, 1, 20])
def test_channels_are_kept_until_the_share_is_reached(masked, share, rows):
    scores = torch.randn((rows, 48) if rows else (48,), generator=torch.Generator().manual_seed(rows))
    assert torch.equal(at_mac_share(scores, masked, share), best_first(scores, share))


def test_equal_scores_keep_the_first_channels(masked):
    assert torch.equal(at_mac_share(torch.zeros(48), masked, 0.4), best_first(torch.zeros(48), 0.4))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_per_gate_keeps_the_best_and_the_same_share_of_each_gate(masked, share):
    scores = torch.randn(3, 48, generator=torch.Generator().manual_seed(1))
    masks = at_mac_share(scores, masked, share, per_gate=True)
    for row, mask in zip(scores, masks, strict=True):
        first, second = int(mask[:16].sum()), int(mask[16:].sum())
        assert abs(first / 16 - second / 32) <= 1 / 16
        assert set(mask[:16].nonzero()[:, 0].tolist()) == set(row[:16].topk(first).indices.tolist())
        assert set(mask[16:].nonzero()[:, 0].tolist()) == set(row[16:].topk(second).indices.tolist())
    assert share <= np.mean(shares(masks)) < share + 1 / 16


def test_a_share_above_one_keeps_everything(masked):
    assert at_mac_share(torch.randn(48), masked, 1.3).all()


def test_wrong_scores_and_shares_are_refused(masked):
    with pytest.raises(
        InvalidInputError, match=re.escape("The scores have shape (47,); finite numbers of shape (48,) or")
    ):
        at_mac_share(torch.zeros(47), masked, 0.5)
    with pytest.raises(InvalidInputError, match=r"finite numbers of shape \(48,\)"):
        at_mac_share(torch.full((48,), float("nan")), masked, 0.5)
    with pytest.raises(InvalidInputError, match=r"The MAC share is 0; a finite number above 0 is needed."):
        at_mac_share(torch.zeros(48), masked, 0)


def bundle(masked, evaluated, seed=0):
    info = CNNInfo.of("simple-cnn", evaluated)
    return Bundle(masked=masked, info=info, data={"evaluated": evaluated, "train": load_dataset("digits")}, seed=seed)


@pytest.fixture
def model(masked, few):
    return bundle(masked, few)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_spends_the_share_and_little_more(model, masked, few, name):
    made = make_baseline(name, model, 0.5)
    result = evaluate(made, masked, few)
    if name == "keep-all":
        assert result.mac_share == 1
    else:
        assert 0.5 <= result.mac_share < 0.5 + 1 / 16
    oracle = name in ("activation-topk", "ranked-activation")
    assert result.policy_mac_share == (1 if oracle else 0)
    assert any("dense forward pass" in note for note in result.notes) == oracle
    per_image = {"random", "activation-topk", "ranked-activation"}
    assert (result.distinct_masks > 1) == (name in per_image)


def test_unknown_baseline_names_the_nearest(model):
    with pytest.raises(
        UnknownNameError, match=r"Unknown baseline 'tailor'. Did you mean 'taylor'\? Known: activation-topk,"
    ):
        make_baseline("tailor", model, 0.5)


def test_random_masks_keep_as_many_of_each_image_and_follow_the_seed(masked, few):
    one = make_baseline("random", bundle(masked, few, seed=1), 0.5).mask
    again = make_baseline("random", bundle(masked, few, seed=1), 0.5).mask
    other = make_baseline("random", bundle(masked, few, seed=2), 0.5).mask
    assert len(set(one.sum(1).tolist())) == 1
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_l1_norms_agree_with_numpy(masked, digits_cnn):
    weights = [digits_cnn.features[index].weight.detach().numpy() for index in (0, 3)]
    expected = np.concatenate([np.abs(weight).reshape(len(weight), -1).sum(1) for weight in weights])
    assert np.allclose(l1_scores(masked).numpy(), expected, rtol=1e-6)


def test_activations_agree_with_hooks(masked, digits_cnn, few):
    images, seen = few.batch(torch.arange(6)), []
    handles = [
        digits_cnn.features[index].register_forward_hook(lambda _m, _i, out: seen.append(out.abs().mean((2, 3))))
        for index in (2, 5)
    ]
    with torch.no_grad():
        digits_cnn(images)
    for handle in handles:
        handle.remove()
    assert torch.allclose(activations(masked, images), torch.cat(seen, 1), atol=1e-6)


def test_ranked_activation_is_the_teacher_of_imitation(model, masked, few):
    masks = make_baseline("ranked-activation", model, 0.5).mask
    kept = int(masks[0].sum())
    teacher = keep_best(channel_scores(masked, few.batch(torch.arange(40))), kept / 48)
    assert torch.equal(masks, teacher.bool())


def test_taylor_ranks_by_taylor_scores(model, masked):
    mask = make_baseline("taylor", model, 0.5).mask
    scores = taylor_scores(masked, model.data["train"])
    for part, row in zip(masked.split(mask), masked.split(scores), strict=True):
        assert row[part].min() >= row[~part].max()


def four_channels():
    """A network of one gate with four channels on 4x4 images, and two classes."""
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)
    ).eval()


def test_greedy_search_finds_the_best_pair_of_four_channels():
    """Every channel costs the same, so the search from 4 channels to 2 is checked against its definition by loops."""
    from prunegym.models import Dataset, Normalisation

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 1, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 2, (64,), generator=generator)
    train = Dataset("noise", "train", images, labels, ("a", "b"), Normalisation((0.5,), (0.5,)))
    network = four_channels()
    masked = MaskedCNN(network, torch.zeros(1, 1, 4, 4))

    def loss(kept):
        mask = torch.zeros(4)
        mask[list(kept)] = 1
        with torch.no_grad():
            hidden = network[:2](train.batch(torch.arange(64))) * mask.view(1, 4, 1, 1)
            return nn.functional.cross_entropy(network[2:](hidden), labels).item()

    kept = [0, 1, 2, 3]
    while len(kept) > 2:
        kept = min((sorted(set(kept) - {channel}) for channel in kept), key=loss)
    share = masked.cost.mac_share(torch.tensor([[1.0, 1, 0, 0]])).item()
    found = greedy_static(masked, train, share, candidates=4, step_share=0.0).mask
    assert found.nonzero()[:, 0].tolist() == kept
    assert len(kept) == 2


def test_greedy_search_beats_random_and_l1_masks(masked):
    train = load_dataset("digits")
    mask = greedy_static(masked, train, 0.4, images=128).mask
    assert 0.4 <= shares(mask)[0] < 0.45
    result = evaluate(mask, masked, train)
    scores = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    others = [at_mac_share(row, masked, 0.4) for row in scores] + [at_mac_share(l1_scores(masked), masked, 0.4)]
    assert result.accuracy > max(evaluate(other, masked, train).accuracy for other in others)


def test_greedy_search_stops_at_the_smallest_mask_it_is_allowed(two_channels, votes):
    import dataclasses

    votes = dataclasses.replace(votes, split="train")
    assert greedy_static(two_channels, votes, 1.0).mask.tolist() == [True, True]
    assert greedy_static(two_channels, votes, 0.4).mask.tolist() == [True, False]


def test_learned_static_mask_spends_the_share_and_beats_random(masked):
    train = load_dataset("digits")
    before = {name: value.clone() for name, value in masked.state_dict().items()}
    mask = learned_static(masked, INFO, train, 0.4, epochs=4).mask
    assert all(torch.equal(value, before[name]) for name, value in masked.state_dict().items())
    assert 0.4 <= shares(mask)[0] < 0.45
    scores = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    others = [evaluate(at_mac_share(row, masked, 0.4), masked, train).accuracy for row in scores]
    assert evaluate(mask, masked, train).accuracy > max(others)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learned-static", "taylor-static", "greedy-static"])
def test_static_masks_get_constants_where_the_model_has_some(masked, name):
    train = load_dataset("digits")
    masked.compensate(torch.ones(48))
    model = Bundle(masked=masked, info=INFO, data={"train": train, "evaluated": train})
    entry = trained_baseline_entry(name, epochs=4)
    found = entry.make(model, Terms(share=0.4, epochs=4, penalty=0.5, folder=Path()))
    assert masked.constants.tolist() == [1.0] * 48
    own, mask = found.masked.constants, found.policy.mask_logits() > 0
    assert not torch.allclose(own, torch.ones(48))
    result = evaluate(found, None, train)
    # The product of a static mask with its constants is in the biases, so it costs nothing.
    assert result.total_mac_share == pytest.approx(shares(mask)[0], rel=1e-9)
    zeros = evaluate(mask, found.masked.compensate(None), train)
    loss, other = (torch.nn.functional.cross_entropy(one.logits, train.labels) for one in (result, zeros))
    assert loss < other  # what is trained; accuracy may differ by a few images either way


def test_taylor_static_mask_weighs_scores_by_price(masked):
    train = load_dataset("digits")
    mask = taylor_static(masked, train, 0.5).mask
    first, second = FULL - macs_of(15, 32), FULL - macs_of(16, 31)
    ratio = taylor_scores(masked, train) / torch.tensor([first] * 16 + [second] * 32)
    assert torch.equal(mask, best_first(ratio, 0.5))


def test_fixed_policy_gives_its_mask_to_every_image(masked, few):
    mask = torch.rand(48, generator=torch.Generator().manual_seed(0)) < 0.5
    model = DynamicCNN(masked, fixed_policy(masked, mask), CNNInfo.of("simple-cnn", few))
    result = evaluate(model, None, few)
    assert torch.equal(result.masks, mask.expand(40, -1))
    assert torch.equal(result.logits, evaluate(mask, masked, few).logits)


@pytest.mark.parametrize("learned", [True, False])
def test_pruned_and_tuned_network_is_static_better_than_before_and_leaves_the_original(digits_cnn, few, learned):
    train = load_dataset("digits")
    before = {name: value.clone() for name, value in digits_cnn.state_dict().items()}
    baseline = pruned_and_tuned(
        digits_cnn, CNNInfo.of("simple-cnn", train), train, 0.3, 20 if learned else 4, learned=learned
    )
    assert all(torch.equal(value, before[name]) for name, value in digits_cnn.state_dict().items())
    test = load_dataset("digits", "test")
    result = evaluate(baseline, None, test, dense=digits_cnn)
    untuned = evaluate(result.masks[0], MaskedCNN(digits_cnn, torch.zeros(1, 1, 8, 8)), test)
    assert result.distinct_masks == 1
    assert result.policy_mac_share == 0
    assert result.total_mac_share == pytest.approx(0.3, abs=0.04)
    assert result.accuracy > untuned.accuracy


def test_the_taylor_baseline_keeps_its_mask_while_it_is_tuned(digits_cnn):
    train = load_dataset("digits")
    masked = MaskedCNN(digits_cnn, torch.zeros(1, 1, 8, 8))
    expected = at_mac_share(taylor_scores(masked, train), masked, 0.5, per_gate=True)
    baseline = pruned_and_tuned(masked, CNNInfo.of("simple-cnn", train), train, 0.5, 0.5, learned=False)
    assert torch.equal(baseline.predict(train.images[:3]).masks, expected.expand(3, -1))


def test_gates_are_shifted_to_the_share(dynamic):
    train = load_dataset("digits")
    before = evaluate(dynamic, None, train)
    moved = evaluate(gates_at_mac_share(dynamic, train, 0.8), None, train)
    assert moved.total_mac_share == pytest.approx(0.8, abs=0.02)
    assert abs(before.total_mac_share - 0.8) > 0.05
    assert evaluate(dynamic, None, train).mac_share == before.mac_share
    assert moved.distinct_masks > 10


def test_shifted_gates_keep_the_order_of_logits(dynamic, few):
    """In the first gate, whose input no mask changes, fewer channels are a subset of more."""
    train = load_dataset("digits")
    masks = [
        evaluate(gates_at_mac_share(dynamic, train, share), None, few).masks[:, :16].int() for share in (0.3, 0.5, 0.8)
    ]
    assert all((more >= fewer).all() for fewer, more in itertools.pairwise(masks))


def test_untrained_network_can_be_searched(few):
    masked = MaskedCNN(build("simple-cnn-wide", 10, 1, 8), torch.zeros(1, 1, 8, 8))
    mask = greedy_static(masked, load_dataset("digits"), 0.9, images=16, candidates=2).mask
    assert 0.9 <= masked.cost.mac_share(mask[None].float()).item() < 1
