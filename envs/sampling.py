"""Random images: each once an epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class EpochSampler:
    """Draws indices so that each epoch has every index once, in a new random order.

    Args:
        count: Number of images.
        rng: Source of the orders.
    """

    def __init__(self, count: int, rng: np.random.Generator) -> None:
        self.count = count
        self.rng = rng
        self._left = np.empty(0, dtype=np.int64)

    def draw(self, number: int) -> Tensor:
        """Return the next ``number`` indices, int64; a draw may run over the end of an epoch."""
        while len(self._left) < number:
            self._left = np.concatenate([self._left, self.rng.permutation(self.count)])
        drawn, self._left = self._left[:number], self._left[number:]
        return torch.from_numpy(drawn.copy())
