"""Rewards without a gradient, for the suite ``rewards``: each is a class whose objects are rewards.

Their means over all images of a split are what the suite compares. No penalty is used: the price is in the reward.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import torch
from torch import Tensor

from prunegym.envs.rewards.outcome import Outcome
from prunegym.errors import InvalidInputError
from prunegym.models.timing.latency_table import LatencyTable
from prunegym.validation import finite, share, whole_number


def right(outcome: Outcome) -> Tensor:
    """Return whether each answer is right: (batch,) bool."""
    return outcome.logits.argmax(1) == outcome.labels


@dataclasses.dataclass(frozen=True)
class HardCap:
    """A right answer counts only if its image uses at most a share of the MACs.

    Attributes:
        cap: The share.

    Example:
        >>> HardCap(0.15).cap
        0.15
    """

    cap: float

    def __post_init__(self) -> None:
        """Check the share."""
        share("cap", self.cap)

    def __call__(self, outcome: Outcome) -> Tensor:
        """Return 1 or 0 for each image: (batch,) float64."""
        return (right(outcome) & (outcome.mac_share <= self.cap)).double()


@dataclasses.dataclass(frozen=True)
class Deadline:
    """A right answer counts only if it is there in time, by a latency table.

    Attributes:
        milliseconds: The deadline of one image, without the time of deciding.
        table: File of ``prunegym latency``.
        mark: Hash of the file, so that runs with another table are other runs.
    """

    milliseconds: float
    table: str
    mark: str = dataclasses.field(default="", repr=False)

    def __post_init__(self) -> None:
        """Read the table."""
        finite("milliseconds", self.milliseconds, above=0)
        object.__setattr__(self, "_table", LatencyTable.load(self.table))
        object.__setattr__(self, "mark", hashlib.sha256(Path(self.table).read_bytes()).hexdigest()[:16])

    def __call__(self, outcome: Outcome) -> Tensor:
        """Return 1 or 0 for each image: (batch,) float64."""
        table: LatencyTable = self._table  # type: ignore[attr-defined]
        table.check(outcome.masked)
        late = 1e3 * table.seconds(outcome.mask.cpu()).to(outcome.mask.device) > self.milliseconds
        return (right(outcome) & ~late).double()


@dataclasses.dataclass(frozen=True)
class CostlyErrors:
    """Errors on images of some classes cost more than others.

    Attributes:
        prices: Of an error, for each class.
        macs: Price of all MACs of one image.
    """

    prices: tuple[float, ...]
    macs: float

    def __post_init__(self) -> None:
        """Check the prices."""
        object.__setattr__(self, "prices", tuple(finite("A price of an error", price, 0) for price in self.prices))
        finite("macs", self.macs, 0)

    def __call__(self, outcome: Outcome) -> Tensor:
        """Return minus what the error and the MACs cost: (batch,) float64."""
        if len(self.prices) != outcome.logits.shape[1]:
            raise InvalidInputError(f"There are {len(self.prices)} prices, for {outcome.logits.shape[1]} classes.")
        prices = torch.tensor(self.prices, dtype=torch.float64, device=outcome.labels.device)
        return -(~right(outcome)).double() * prices[outcome.labels] - self.macs * outcome.mac_share


@dataclasses.dataclass(frozen=True)
class WorstClass:
    """The accuracy of the worst class, less the price of the MACs.

    Only images of the worst class of a batch are paid for a right answer, each as much as to make the mean over the
    batch the accuracy of that class.

    Attributes:
        macs: Price of all MACs of one image.
    """

    macs: float

    def __post_init__(self) -> None:
        """Check the price."""
        finite("macs", self.macs, 0)

    def __call__(self, outcome: Outcome) -> Tensor:
        """Return what each image earns: (batch,) float64."""
        correct, labels = right(outcome).double(), outcome.labels
        count = torch.bincount(labels, minlength=outcome.logits.shape[1]).double()
        accuracy = torch.bincount(labels, correct, minlength=len(count)) / count
        worst = int(torch.where(count > 0, accuracy, torch.inf).argmin())
        paid = correct * (labels == worst) * len(labels) / count[worst]
        return paid - self.macs * outcome.mac_share


@dataclasses.dataclass(frozen=True)
class Abstain:
    """Below a confidence the network gives no answer, which costs less than a wrong one.

    Attributes:
        confidence: Least probability of the answer.
        price: Of no answer; a wrong answer costs 1, a right one earns 1.
        macs: Price of all MACs of one image.
    """

    confidence: float
    price: float
    macs: float

    def __post_init__(self) -> None:
        """Check the numbers."""
        share("confidence", self.confidence)
        finite("price", self.price, 0)
        finite("macs", self.macs, 0)

    def __call__(self, outcome: Outcome) -> Tensor:
        """Return what each image earns: (batch,) float64."""
        sure = outcome.logits.softmax(1).amax(1) >= self.confidence
        answered = torch.where(right(outcome), 1.0, -1.0).double()
        return torch.where(sure, answered, -self.price) - self.macs * outcome.mac_share


@dataclasses.dataclass(frozen=True)
class SharedBudget:
    """Images share a budget in groups: in a group that exceeds it, no answer counts.

    Image k of a batch is in group k modulo the number of groups, so that neighbours, which may be copies of one image,
    are in different groups.

    Attributes:
        budget: Mean MAC share that a group may spend.
        images: Images of a group, about.
    """

    budget: float
    images: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        share("budget", self.budget)
        whole_number("images", self.images)

    def __call__(self, outcome: Outcome) -> Tensor:
        """Return 1 or 0 for each image: (batch,) float64."""
        batch = len(outcome.mac_share)
        groups = max(1, batch // self.images)
        group = torch.arange(batch, device=outcome.mac_share.device) % groups
        count = torch.bincount(group, minlength=groups)
        spent = torch.bincount(group, outcome.mac_share, minlength=groups) / count
        return (right(outcome) & (spent <= self.budget)[group]).double()
