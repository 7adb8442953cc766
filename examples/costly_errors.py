"""An error on a digit from 5 to 9 costs ten times as much as another error. ``python examples/costly_errors.py``.

The cost depends on the predicted class and has no gradient. The baseline uses the costs too: it also trains on images
that are drawn in proportion to the cost of an error.
"""

from __future__ import annotations

import torch
from no_gradient import compare
from torch import Tensor

from prunegym import Outcome

PRICES = torch.tensor([1.0] * 5 + [10.0] * 5)
MACS = 10.0
"""Cost of all MACs of one image, as a number of errors on digits from 0 to 4."""


def priced(outcome: Outcome) -> Tensor:
    """Return minus the cost of the error and of the MACs: (batch,)."""
    wrong = (outcome.logits.argmax(1) != outcome.labels).double()
    return -wrong * PRICES.to(wrong)[outcome.labels] - MACS * outcome.mac_share


if __name__ == "__main__":
    compare(priced, targets=(0.08, 0.15), weights=PRICES, episodes=40960)
