"""Costs of a mask: ||M||_0 over channels or weights, MAC share, and measured time."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from torch import Tensor

from prunegym.envs.rewards.accuracy import AccuracyTerm
from prunegym.envs.rewards.calling import call_checked
from prunegym.envs.rewards.outcome import Outcome
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.timing.latency_table import LatencyTable


class Cost(Protocol):
    """Cost of a mask in its own unit."""

    def __call__(self, masked: MaskedCNN, mask: Tensor) -> Tensor:
        """From (batch, mask_size) bits to (batch,) float64."""


def kept_channels(masked: MaskedCNN, mask: Tensor) -> Tensor:  # noqa: ARG001
    """Return ||M||_0 over channels, as in the article's example: (batch,) float64."""
    return mask.double().sum(1)


def kept_weights(masked: MaskedCNN, mask: Tensor) -> Tensor:
    """Return ||M||_0 over weights, as the article defines it: (batch,) float64.

    A weight counts if its input and output channels are both kept.
    """
    return masked.cost.weights(mask)


def mac_share(masked: MaskedCNN, mask: Tensor) -> Tensor:
    """Return MACs under the mask, those of adding constants too, / MACs of the original CNN: (batch,) float64."""
    return masked.spent_share(mask)


@dataclasses.dataclass(frozen=True)
class CostReward:
    """Accuracy term minus lambda * cost; the cost can be paid gate by gate.

    Attributes:
        accuracy: The accuracy term.
        cost: The cost.
    """

    accuracy: AccuracyTerm
    cost: Cost

    def __call__(self, outcome: Outcome) -> Tensor:
        """Return the whole reward (batch,) float64."""
        accuracy = call_checked("accuracy term", self.accuracy, outcome)
        # The article's R = L(W * M(x); D) - lambda ||M(x)||_0, with L read as a performance (see resolve_reward).
        return accuracy - outcome.penalty * self.cost(outcome.masked, outcome.mask)

    def step_cost(self, outcome: Outcome, gate: int) -> Tensor:
        """Return how much the bits of ``gate`` add to lambda * cost while all later gates are 0: (batch,) float64."""
        before = outcome.mask.clone()
        outcome.masked.split(before)[gate].zero_()
        # A channel costs more MACs the more neighbours are kept. Differences of prefixes add up to the cost exactly.
        added = self.cost(outcome.masked, outcome.mask) - self.cost(outcome.masked, before)
        return outcome.penalty * added


@dataclasses.dataclass(frozen=True)
class LatencyShare:
    """Time under the mask / time with all channels on, from a table measured on one machine."""

    table: LatencyTable

    def __call__(self, masked: MaskedCNN, mask: Tensor) -> Tensor:  # noqa: ARG002
        """Return the share for each mask: (batch,) float64."""
        return self.table.share(mask)
