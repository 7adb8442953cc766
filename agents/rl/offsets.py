"""Gates shifted by one offset on all their logits: to a MAC share, or to where the reward is highest."""

from __future__ import annotations

import copy

import torch

from prunegym.agents.evaluation.controls import penalised_accuracy
from prunegym.agents.evaluation.masks import decide_on_the_way
from prunegym.models.data.dataset import Dataset
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.gating.rollouts import rollout
from prunegym.models.skipping.skipping_cnn import prefer_kernel
from prunegym.models.training.mac_target import meet_target


def gates_at_mac_share(agent: DynamicCNN, dataset: Dataset, share: float) -> DynamicCNN:
    """Shift a dynamic CNN's gate logits until it spends a wanted share of the MACs.

    So gates before RL stand beside those after it at the same cost, nearly: the shift is found to 0.01, and on at most
    1,000 images.

    Args:
        agent: Masked CNN and gates; not changed.
        dataset: Images on which it is measured, best those that are evaluated; labels are not looked at.
        share: Total MAC share, the policy's included.

    Returns:
        The same CNN with a shifted copy of the gates.
    """
    policy = copy.deepcopy(agent.policy)
    meet_target(agent.masked, policy, dataset, share)
    return DynamicCNN(agent.masked, policy, agent.info)


@torch.no_grad()
def gates_at_best_offset(agent: DynamicCNN, dataset: Dataset, penalty: float, *, step: float = 0.15) -> DynamicCNN:
    """Shift a dynamic CNN's gate logits to where the reward, correct - penalty * total MAC share, is highest.

    So what reinforcement learning adds to its start is not just another place on the start's own curve. One offset on
    all logits goes up step by step, then down, for two steps that do not help in a row; at last half a step to each
    side of the best is tried.

    Args:
        agent: Masked CNN and gates; not changed.
        dataset: Images with labels to choose on: the validation split.
        penalty: lambda.
        step: Between two offsets, in standard deviations of the agent's logits.

    Returns:
        The same CNN with a shifted copy of the gates.
    """
    some = dataset.batch(torch.arange(min(250, len(dataset))), device=agent.masked.device)
    unit = step * rollout(agent.masked, agent.policy, some).gate_logits.std().item()
    rewards = {0.0: _reward(agent, dataset, penalty)}

    def try_at(steps: float) -> None:
        rewards[steps] = _reward(_shifted(agent, steps * unit), dataset, penalty)

    def best() -> float:
        return max(rewards, key=lambda steps: rewards[steps])

    for side in (1.0, -1.0):
        steps = side
        while abs(steps - best()) <= 2:
            try_at(steps)
            steps += side
    middle = best()
    for steps in (middle - 0.5, middle + 0.5):
        try_at(steps)
    return _shifted(agent, best() * unit)


def _shifted(agent: DynamicCNN, offset: float) -> DynamicCNN:
    policy = copy.deepcopy(agent.policy)
    policy.rescale_logits(offset=offset)
    return DynamicCNN(agent.masked, policy, agent.info)


def _reward(agent: DynamicCNN, dataset: Dataset, penalty: float) -> float:
    run, device = prefer_kernel(agent.masked, agent.policy), agent.masked.device
    masks, logits = decide_on_the_way(run, dataset, device, 250)
    shares = agent.masked.cost.total_share(masks, agent.policy.macs)
    return penalised_accuracy(logits.argmax(1) == dataset.labels, shares, penalty).mean().item()
