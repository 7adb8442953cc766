"""What your reward function gets: its own copies of tensors, and images that it can identify."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunegym.agents.rl.recipe import Recipe, own_reward
from prunegym.envs import MaskSimulator, Outcome, make_task
from prunegym.models import load_dataset, shipped_model


def price(outcome: Outcome) -> torch.Tensor:
    over = (outcome.mac_share - 0.3).clamp(min=0)
    return (outcome.logits.argmax(1) == outcome.labels).double() - outcome.penalty * over


def price_in_place(outcome: Outcome) -> torch.Tensor:
    over = outcome.mac_share
    over -= 0.3
    over.clamp_(min=0)
    right = (outcome.logits.argmax(1) == outcome.labels).double()
    for column in (outcome.labels, outcome.indices, outcome.mask, outcome.kept, outcome.logits, outcome.dense_logits):
        column.zero_()
    return right - outcome.penalty.mul_(over)


class Pays:
    """The same, paid gate by gate."""

    __call__ = staticmethod(price_in_place)

    def step_cost(self, outcome: Outcome, _gate: int) -> torch.Tensor:
        outcome.mask.zero_()
        return outcome.mac_share.zero_()


@pytest.mark.parametrize("reward", [price_in_place, Pays()])
def test_a_reward_that_works_in_place_changes_nothing(reward):
    model = shipped_model("digits")
    plain, in_place = (
        MaskSimulator(make_task(model, "digits", reward=one, penalty=0.3, layerwise=True), 6, np.random.default_rng(0))
        for one in (price, reward)
    )
    for _ in range(2):
        for simulator in (plain, in_place):
            simulator.reset([0, 1, 2, 3, 4, 5])
        for _ in plain.decisions:
            results = [simulator.step(np.ones((6, 64))) for simulator in (plain, in_place)]
        assert results[0].reward == pytest.approx(results[1].reward)
        infos = [result.outcome.summary() for result in results]
        assert all(np.array_equal(infos[0][name], infos[1][name]) for name in infos[0])
    assert torch.equal(plain.task.dataset.labels, in_place.task.dataset.labels)


def test_what_actors_are_compared_by_is_not_changed_either():
    model, data = shipped_model("digits"), load_dataset("digits", "validation")
    labels, masks = data.labels.clone(), torch.ones(len(data), model.masked.mask_size)
    reward = own_reward(Recipe("mine", env_kwargs={"reward": price_in_place, "penalty": 0.3}), model.masked, data)
    logits = model.masked(data.batch(torch.arange(len(data))), masks)
    assert reward(masks, logits, 0.3) == reward(masks, logits, 0.3) > 0
    assert torch.equal(data.labels, labels)


@pytest.mark.parametrize("kind", ["whole", "sample", "part", "sample of a part"])
def test_places_are_those_in_the_whole_split(kind):
    model, whole = shipped_model("digits"), load_dataset("digits", "train")
    data = whole.part("300:900") if "part" in kind else whole
    data = data.sample(200) if "sample" in kind else data
    seen = []

    def look_up(outcome):
        assert outcome.dataset.split == "train"
        assert torch.equal(whole.labels[outcome.places], outcome.labels)
        assert torch.equal(whole.images[outcome.places], outcome.dataset.images[outcome.indices])
        seen.extend(outcome.places.tolist())
        return outcome.kept

    simulator = MaskSimulator(make_task(model, data, reward=look_up), 50, np.random.default_rng(0))
    for _ in range(4):
        simulator.reset()
        simulator.step(np.ones((50, model.masked.mask_size)))
    assert len(set(seen)) == 200

    reward = own_reward(Recipe("mine", env_kwargs={"reward": look_up, "penalty": 0.3}), model.masked, data)
    reward(torch.ones(len(data), model.masked.mask_size), torch.zeros(len(data), 10), 0.3)


def test_a_split_that_is_taken_out_of_another_is_whole():
    validation = load_dataset("digits", "validation")
    assert validation.places is None
    assert torch.equal(validation.place(torch.tensor([3, 1])), torch.tensor([3, 1]))
    assert torch.equal(validation.subset(torch.tensor([5, 9])).place(torch.tensor([1, 0])), torch.tensor([9, 5]))
