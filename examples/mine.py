"""Your own reward function and agent, for ``--reward mine:squared_macs`` and ``--agent mine:BrightImagesGetMore``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from prunegym import Outcome


def squared_macs(outcome: Outcome) -> torch.Tensor:
    """Return 1 for a right answer, minus lambda * (MAC share)^2: saving more is worth less and less."""
    right = (outcome.logits.argmax(1) == outcome.labels).double()
    return right - outcome.penalty * outcome.mac_share**2


class BrightImagesGetMore:
    """An agent that does not learn: images with large features keep every channel, others three of four."""

    layerwise = True
    macs = 0
    """MACs of deciding one mask; the evaluation adds them."""

    def predict(self, observation: dict[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.int8]:
        """Return bits (batch, widest gate) for features (batch, any); bits past a gate's width are ignored."""
        bright = observation["features"].mean(axis=1) > 0
        bits = np.ones((len(bright), 64), dtype=np.int8)
        bits[~bright, ::4] = 0
        return bits
