"""Outputs of a masked CNN for a split, cached so that no image runs twice under the same mask."""

from __future__ import annotations

import torch
from torch import Tensor

from prunegym.models.data.dataset import Dataset
from prunegym.models.masking.masked_cnn import MaskedCNN


class MaskCache:
    """Runs the images of a split under masks, and reuses every output that it has.

    Args:
        masked: The CNN, in eval mode.
        dataset: The images.
        batch_size: Images in one forward pass.

    Attributes:
        forwards: Number of images that were run.
    """

    def __init__(self, masked: MaskedCNN, dataset: Dataset, batch_size: int = 250) -> None:
        self.masked = masked
        self.dataset = dataset
        self.batch_size = batch_size
        self.forwards = 0
        self._known: list[tuple[Tensor, Tensor]] = []

    def add(self, masks: Tensor, logits: Tensor) -> None:
        """Store masks (images, mask_size) bool and the outputs (images, ...) under them."""
        self._known.append((masks, logits))

    def __call__(self, masks: Tensor) -> Tensor:
        """Return the outputs (images, ...) float32 on the CPU under masks (images, mask_size) bool, or (mask_size,)."""
        masks = masks.expand(len(self.dataset), -1)
        logits = torch.empty(len(masks), *self.masked.output_shape)
        left = torch.ones(len(masks), dtype=torch.bool)
        for known, output in self._known:
            same = left & (known == masks).all(1)
            logits[same] = output[same]
            left &= ~same
        device = self.masked.device
        for part in torch.split(left.nonzero()[:, 0], self.batch_size) if left.any() else ():
            images = self.dataset.batch(part, device=device)
            logits[part] = self.masked(images, masks[part].float().to(device)).float().cpu()
            self.forwards += len(part)
        self.add(masks, logits)
        return logits
