"""A hard limit: an answer counts only if it used at most 15 % of the MACs. ``python examples/hard_cap.py``.

A deadline or an energy budget for each image is such a limit. Gates that are trained by gradient have a target for the
mean MACs, which does not limit single images.
"""

from __future__ import annotations

from no_gradient import compare
from torch import Tensor

from prunegym import Outcome

CAP = 0.15


def in_time(outcome: Outcome) -> Tensor:
    """Return 1 for a right answer within the cap, else 0: (batch,)."""
    right = outcome.logits.argmax(1) == outcome.labels
    return (right & (outcome.mac_share <= CAP)).double()


if __name__ == "__main__":
    compare(in_time, targets=(0.08, 0.12))
