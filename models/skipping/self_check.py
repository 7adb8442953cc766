"""Trying each execution path before it is used: does it give the outputs of the masked CNN?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.program.lowering import UnsupportedError
from prunegym.models.skipping.program.path import Executed

TOLERANCE = 1e-3
"""Largest error in float32, as a share of the largest output. Rounding errors are a hundred times smaller."""
ROUNDINGS = 8
"""The same for other types, as a multiple of the type's rounding error (``torch.finfo(dtype).eps``)."""


def check_outputs(
    run: Callable[[Tensor, Tensor | None, float | None], Executed], masked: MaskedCNN, policy: GatePolicy | None = None
) -> None:
    """Run two images of noise, and the masked CNN on the same images and masks.

    Args:
        run: Takes images, masks and lambda, as :meth:`prunegym.models.skipping.program.path.ExecutionPath.run` does.
        masked: The network.
        policy: Decides the masks gate by gate; None: half of the channels are masked.

    Raises:
        UnsupportedError: If it fails, or gives other outputs than the masked CNN.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *masked.image_shape, generator=generator).to(masked.device, masked.dtype)
    mask = None if policy else (torch.rand(2, masked.mask_size, generator=generator) < 0.5).to(masked.device)
    # Under autocast the two would differ by its rounding.
    with torch.no_grad(), torch.autocast(masked.device.type, enabled=False):
        try:
            found = run(images, mask, None)
        except RuntimeError as error:
            raise UnsupportedError(f"It fails on this network: {' '.join(str(error).split())}") from error
        expected = masked(images, found.mask)
    if found.output.shape != expected.shape:
        shapes = f"{tuple(found.output.shape)}, the masked CNN {tuple(expected.shape)}"
        raise UnsupportedError(f"It gives outputs of shape {shapes}.")
    # The largest error over the largest output, max |y - y'| / max |y'|.
    difference = float((found.output - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    if not difference <= max(TOLERANCE, ROUNDINGS * torch.finfo(masked.dtype).eps):
        raise UnsupportedError(f"Its outputs are not the masked CNN's: off by {difference:.2g} of the largest.")
