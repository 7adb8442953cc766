"""Channel groups: one bit for several channels, so that a policy has fewer bits to explore."""

from __future__ import annotations

import torch
from stable_baselines3.common.distributions import BernoulliDistribution
from torch import Tensor, nn

from prunegym.models.errors import InvalidInputError
from prunegym.models.gate_policy import GatePolicy


class ChannelGroups(nn.Module):
    """Which channels of each decision share a bit. A group's first channel, its leader, decides for all of it.

    Channels are grouped with those whose logits are most alike in a gate policy: the rows of its last layer, bias
    included, are nearest to each other. So the gates that training begins from change as little as groups allow.

    Args:
        policy: The gate policy; its last layers become the means over each group, in place.
        size: Channels of a group, at most.
        width: Size of the action space; bits past a decision's width are groups of their own.

    Attributes:
        leaders: (decisions, width) int64, the channel that decides for each channel.
        weights: (decisions, width) float32, one over the size of the group of each channel.

    Raises:
        InvalidInputError: If the size is no whole number of at least 1.
    """

    leaders: Tensor
    weights: Tensor

    def __init__(self, policy: GatePolicy, size: int, width: int) -> None:
        super().__init__()
        if not isinstance(size, int) or size < 1:
            raise InvalidInputError(f"channel_group is {size!r}; a whole number of at least 1 is needed.")
        leaders = torch.arange(width).repeat(len(policy.decisions), 1)
        for row, layer in zip(leaders, policy.last_layers(), strict=True):
            rows = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().cpu()
            row[: len(rows)] = _alike(rows, size)
        sizes = torch.zeros(leaders.shape).scatter_add_(1, leaders, torch.ones(leaders.shape))
        self.register_buffer("leaders", leaders)
        self.register_buffer("weights", 1 / sizes.gather(1, leaders))
        self._share(policy, mean=True)

    def tie(self, policy: GatePolicy) -> None:
        """Give every channel the logit of its leader, in place."""
        self._share(policy, mean=False)

    @torch.no_grad()
    def _share(self, policy: GatePolicy, mean: bool) -> None:
        for leaders, weights, layer in zip(self.leaders, self.weights, policy.last_layers(), strict=True):
            own = leaders[: layer.out_features].to(layer.weight.device)
            part = weights[: layer.out_features, None].to(layer.weight)
            for values in (layer.weight, layer.bias[:, None]):
                source = torch.zeros_like(values).index_add_(0, own, values * part) if mean else values
                values.copy_(source[own])


class SharedBits(BernoulliDistribution):
    """A Bernoulli distribution of as many bits as there are groups, in the form of one bit a channel.

    Args:
        leaders: (batch, width) int64, see :class:`ChannelGroups`.
        weights: (batch, width) float32.
    """

    def __init__(self, leaders: Tensor, weights: Tensor) -> None:
        super().__init__(leaders.shape[1])
        self._leaders, self._weights = leaders, weights

    def proba_distribution(self, action_logits: Tensor) -> SharedBits:
        """Take logits (batch, width), of which each group's leader's count."""
        super().proba_distribution(action_logits.gather(1, self._leaders))
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log-probabilities (batch,) of actions whose groups have one bit each: one term a group."""
        terms: Tensor = self.distribution.log_prob(actions)  # type: ignore[no-untyped-call]
        return (terms * self._weights).sum(1)

    def entropy(self) -> Tensor:
        """Return the entropies (batch,), one term a group."""
        terms: Tensor = self.distribution.entropy()  # type: ignore[no-untyped-call]
        return (terms * self._weights).sum(1)

    def sample(self) -> Tensor:
        """Return bits (batch, width): the leader's for all of its group."""
        return super().sample().gather(1, self._leaders)

    def actions_from_params(self, action_logits: Tensor, deterministic: bool = False) -> Tensor:
        """Return bits (batch, width) for logits."""
        self.proba_distribution(action_logits)
        return self.get_actions(deterministic=deterministic)

    def log_prob_from_params(self, action_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return bits for logits, and their log-probabilities."""
        actions = self.actions_from_params(action_logits)
        return actions, self.log_prob(actions)


def _alike(rows: Tensor, size: int) -> Tensor:
    """Return the leader of each row: greedily, the first row that is left takes those that are nearest to it."""
    leaders = torch.full((len(rows),), -1)
    while (leaders < 0).any():
        left = (leaders < 0).nonzero()[:, 0]
        distances = (rows[left] - rows[left[0]]).square().sum(1)
        leaders[left[distances.topk(min(size, len(left)), largest=False).indices]] = left[0]
        leaders[left[0]] = left[0]
    return leaders
