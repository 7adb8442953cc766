"""Errors that cost differently: one on a digit from 5 to 9 costs ten others. ``python examples/costly_errors.py``.

The cost is of the answer that is given, and has no gradient. The rival is told of it as well as can be: it trains, too,
on images drawn as often as their errors cost.
"""

from __future__ import annotations

import torch
from no_gradient import compare
from torch import Tensor

from prunegym import Outcome

PRICES = torch.tensor([1.0] * 5 + [10.0] * 5)
MACS = 10.0
"""What all MACs of an image cost, in errors on a digit from 0 to 4."""


def priced(outcome: Outcome) -> Tensor:
    """Return less the cost of an error and of the MACs: (batch,)."""
    wrong = (outcome.logits.argmax(1) != outcome.labels).double()
    return -wrong * PRICES.to(wrong)[outcome.labels] - MACS * outcome.mac_share


if __name__ == "__main__":
    compare(priced, targets=(0.08, 0.15), weights=PRICES, episodes=40960)
