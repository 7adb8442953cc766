"""Static masks, one for all images: channel scores, the cut at a MAC share, and gates that look at nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset
from prunegym.models.features import MaskFeatures
from prunegym.models.gate_policy import StaticPolicy
from prunegym.models.masked import MaskedCNN


def taylor_scores(masked: MaskedCNN, dataset: Dataset, images: int = 2048) -> Tensor:
    """Score channels by the expected squared change of the loss when they go (Molchanov et al. 2019, equation 8).

    Args:
        masked: The CNN.
        dataset: Training images with labels.
        images: How many of them, drawn with a fixed seed.

    Returns:
        (mask_size,) float32: the mean over images of the squared gradient of the cross-entropy in the mask.
    """
    total = torch.zeros(masked.mask_size)
    sample = dataset.sample(images)
    for indices in torch.split(torch.arange(len(sample)), 128):
        mask = torch.ones(len(indices), masked.mask_size, requires_grad=True)
        device = next(masked.parameters()).device
        output = masked(sample.batch(indices, device=device), mask.to(device))
        loss = nn.functional.cross_entropy(output, sample.labels[indices].to(device), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, mask)
        total += gradient.square().sum(0)
    return total / len(sample)


def prices(masked: MaskedCNN) -> Tensor:
    """Return what each channel costs in the full network, in MACs: (mask_size,) float64."""
    widths = torch.tensor([gate.width for gate in masked.gates])
    return masked.cost.channel_price().repeat_interleave(widths)


def at_mac_share(scores: Tensor, masked: MaskedCNN, share: float, per_gate: bool = False) -> Tensor:
    """Keep the best-scored channels, so many that a wanted share of the MACs is spent.

    The number of kept channels is the smallest with which the mean MAC share over the rows reaches ``share``: a
    baseline never has less to spend than what it is compared with, and at most one channel more than it needs.

    Args:
        scores: (mask_size,) or (images, mask_size), any finite numbers; of equal ones the first are kept.
        masked: The CNN.
        share: MAC share, from above 0 to 1; what is above 1 counts as 1.
        per_gate: Keep the same share of each gate, to within a channel, instead of the best of all gates.

    Returns:
        Masks of the shape of ``scores``, bool.

    Raises:
        InvalidInputError: For another shape, scores that are not finite, or a share of 0 or below.

    Example:
        >>> from prunegym.models import MaskedCNN, build
        >>> masked = MaskedCNN(build("simple-cnn"), torch.zeros(1, 3, 32, 32))
        >>> mask = at_mac_share(torch.arange(48.0), masked, 0.5, per_gate=True)
        >>> [int(part.sum()) for part in masked.split(mask)], round(masked.cost.mac_share(mask[None]).item(), 3)
        ([11, 21], 0.517)
    """
    scores = scores.detach().cpu()
    if scores.ndim not in (1, 2) or scores.shape[-1] != masked.mask_size or not torch.isfinite(scores).all():
        raise InvalidInputError(
            f"The scores have shape {tuple(scores.shape)}; finite numbers of shape ({masked.mask_size},) or (images, "
            f"{masked.mask_size}) are needed."
        )
    if not share > 0:
        raise InvalidInputError(f"The MAC share is {share}; a number above 0 is needed.")
    rows = scores if scores.ndim == 2 else scores[None]
    if per_gate:  # a channel's place in its gate, from 0 to 1, puts the channels of all gates into one order
        rows = torch.cat([-(_ranks(part) + 0.5) / part.shape[1] for part in masked.split(rows)], dim=1)
    ranks = _ranks(rows)
    low, high = 1, masked.mask_size
    while low < high:  # masks grow with the number of channels, so the first that suffices is found by bisection
        middle = (low + high) // 2
        if masked.cost.mac_share(ranks < middle).mean().item() >= share - 1e-9:
            high = middle
        else:
            low = middle + 1
    return (ranks < low).view(scores.shape)


def _ranks(scores: Tensor) -> Tensor:
    """Return each score's rank in its row, 0 for the best: (rows, channels) -> the same, float64."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], dtype=torch.float64).expand_as(scores)
    return torch.empty_like(places).scatter(1, order, places)


def fixed_policy(masked: MaskedCNN, mask: Tensor) -> StaticPolicy:
    """Return a policy that gives every image the same mask: (mask_size,) of 0 and 1."""
    policy = StaticPolicy(MaskFeatures(masked)).to(next(masked.parameters()).device)
    with torch.no_grad():
        for channels, part in zip(policy.channels, masked.split(mask.float()), strict=True):
            channels.copy_(2 * part - 1)
    return policy


def static_start(masked: MaskedCNN, dataset: Dataset, target_macs: float, *, learned: bool) -> StaticPolicy:
    """Return the gates from which :func:`prunegym.models.preparation.prepare` makes a static rival.

    Args:
        masked: The CNN.
        dataset: Training images.
        target_macs: MAC share of the Taylor mask.
        learned: All channels on, to be learned; else the Taylor mask, the same share of each gate, to be kept.
    """
    if learned:
        return StaticPolicy(MaskFeatures(masked)).to(next(masked.parameters()).device)
    return fixed_policy(masked, at_mac_share(taylor_scores(masked, dataset), masked, target_macs, per_gate=True))
