"""Gates with one offset added to all logits: to spend a MAC share, or to get the highest reward."""

from __future__ import annotations

import copy

import torch

from prunegym.agents.evaluation.masks import decide_on_the_way, penalised_accuracy
from prunegym.models.data.dataset import Dataset
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.gating.static_policy import rollout
from prunegym.models.skipping.skipping_cnn import prefer_kernel
from prunegym.models.training.mac_target import meet_target


def gates_at_mac_share(agent: DynamicCNN, dataset: Dataset, share: float) -> DynamicCNN:
    """Shift a dynamic CNN's gate logits until it spends a given share of the MACs.

    Use it to compare gates before and after reinforcement learning at the same cost. The offset is exact to 0.01, and
    at most 1,000 images are measured.

    Args:
        agent: Masked CNN and gates; not changed.
        dataset: Images to measure on, best those that you evaluate on. Labels are not used.
        share: Total MAC share, with the policy's MACs.

    Returns:
        The same CNN with a shifted copy of the gates.
    """
    policy = copy.deepcopy(agent.policy)
    meet_target(agent.masked, policy, dataset, share)
    return DynamicCNN(agent.masked, policy, agent.info)


@torch.no_grad()
def gates_at_best_offset(agent: DynamicCNN, dataset: Dataset, penalty: float, *, step: float = 0.15) -> DynamicCNN:
    """Shift a dynamic CNN's gate logits to where the reward, correct - penalty * total MAC share, is highest.

    Compare an agent with its start at this offset: it shows what reinforcement learning adds that a mere offset does
    not. The search goes up step by step until two steps in a row do not help, then down in the same way, and at last
    tries half a step on each side of the best offset.

    Args:
        agent: Masked CNN and gates; not changed.
        dataset: Labelled images to choose on, such as the validation split.
        penalty: lambda.
        step: Distance of two offsets, in standard deviations of the agent's logits.

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
    masks, logits = decide_on_the_way(run, dataset, device)
    shares = agent.masked.cost.total_share(masks, agent.policy.macs)
    return penalised_accuracy(logits.argmax(1) == dataset.labels, shares, penalty).mean().item()
