"""Scores of channels, and masks that keep the best-scored ones."""

from __future__ import annotations

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset
from prunegym.models.masking.graph import attribute_of
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.masking.operators import Kind
from prunegym.validation import finite, typed


@typed
def taylor_scores(masked: MaskedCNN, dataset: Dataset, images: int = 2048) -> Tensor:
    """Score channels by the expected squared change of the loss on removal (Molchanov et al. 2019, equation 8).

    Args:
        masked: The CNN.
        dataset: Training images with targets.
        images: How many of them, drawn with a fixed seed.

    Returns:
        (mask_size,) float32: the mean over images of the squared gradient of the loss in the mask.
    """
    total = torch.zeros(masked.mask_size)
    sample = dataset.sample(images)
    for indices, batch in sample.batches(128, device=masked.device):
        mask = torch.ones(len(indices), masked.mask_size, requires_grad=True)
        output = masked(batch, mask.to(batch.device))
        loss = sample.loss(output, indices) * len(indices)  # the sum, which gives each image its own gradient
        (gradient,) = torch.autograd.grad(loss, mask)
        # I = mean over images of (d loss / d mask)^2, at a mask of ones.
        total += gradient.square().sum(0)
    return total / len(sample)


def prices(masked: MaskedCNN) -> Tensor:
    """Return the MACs that removing each channel from the full network saves: (mask_size,) float64."""
    widths = torch.tensor([gate.width for gate in masked.gates])
    return masked.cost.channel_price().repeat_interleave(widths)


def at_mac_share(scores: Tensor, masked: MaskedCNN, share: float, per_gate: bool = False) -> Tensor:
    """Keep the best-scored channels at a given share of the MACs.

    It keeps the smallest number of channels for which the mean MAC share over the rows reaches ``share``. So a baseline
    never gets fewer MACs than the agent that it is compared with, and at most one channel more.

    Args:
        scores: (mask_size,) or (images, mask_size), finite. Among equal scores the first are kept.
        masked: The CNN.
        share: MAC share, above 0; values above 1 count as 1.
        per_gate: Keep the same share of each gate, rounded to channels, instead of the best channels of all gates.

    Returns:
        Masks of the shape of ``scores``, bool.

    Raises:
        InvalidInputError: For a wrong shape, scores that are not finite, or a share of 0 or below.

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
    finite("The MAC share", share, above=0)
    rows = scores if scores.ndim == 2 else scores[None]
    if per_gate:  # ranks within a gate, scaled to 0..1, are comparable between gates
        rows = torch.cat([-(_ranks(part) + 0.5) / part.shape[1] for part in masked.split(rows)], dim=1)
    ranks = _ranks(rows)
    low, high = 1, masked.mask_size
    # The MAC share grows with the number of channels, so bisection finds the smallest number that is enough.
    while low < high:
        middle = (low + high) // 2
        if masked.cost.mac_share(ranks < middle).mean().item() >= share - 1e-9:
            high = middle
        else:
            low = middle + 1
    return (ranks < low).view(scores.shape)


def keep_best(scores: Tensor, kept_share: float) -> Tensor:
    """Return masks that keep the best-scored share of all channels of each image: (batch, mask_size) float32.

    This counts channels, without their cost; :func:`at_mac_share` counts MACs.
    """
    kept = max(1, round(kept_share * scores.shape[1]))
    return torch.zeros_like(scores).scatter(1, scores.topk(kept, dim=1).indices, 1.0)


def _ranks(scores: Tensor) -> Tensor:
    """Return each score's rank in its row, 0 for the best: (rows, channels) -> the same, float64."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], dtype=torch.float64).expand_as(scores)
    return torch.empty_like(places).scatter(1, order, places)


@torch.no_grad()
def channel_scores(masked: MaskedCNN, images: Tensor) -> Tensor:
    """Score the channels of each image by contribution per cost.

    The score is the root mean square of the channel's activation, divided by that of its producer's input and by the
    square root of the channel's MACs. All layers have the same scale, so a budget can move between layers.

    Args:
        masked: The CNN; it runs with all channels on.
        images: (batch, channels, height, width) float, normalised.

    Returns:
        (batch, mask_size) float32.
    """
    state = masked.begin(images, record=True)
    reads: list[Tensor] = []
    while state.reads is not None:
        reads.append(state.reads.float().square().mean((1, 2, 3)).sqrt())
        masked.advance(state, None)
    assert state.points is not None
    price = masked.cost.channel_price()
    price = (price / price.max()).sqrt()
    # score = rms(channel) / rms(producer's input) / sqrt(price of a channel of the gate)
    scores = [
        state.points[gate].float().square().mean((2, 3)).sqrt()
        / reads[gate].clamp_min(1e-12)[:, None]
        / float(price[gate])
        for gate in range(len(masked.gates))
    ]
    return torch.cat(scores, dim=1)


def l1_scores(masked: MaskedCNN) -> Tensor:
    """Return the L1 norm of each channel's filters: (mask_size,) float32."""
    norms = torch.zeros(masked.mask_size + 1)
    for name, index in masked.found.makes.items():
        if masked.graph[name].weight:
            rows = attribute_of(masked.network, masked.graph[name].weight).detach().abs().cpu().float()
            rows = rows.transpose(0, 1) if masked.graph[name].kind is Kind.TRANSPOSED else rows
            norms.index_add_(0, index % len(norms), rows.flatten(1).sum(1))
    return norms[:-1]


def activations(masked: MaskedCNN, images: Tensor) -> Tensor:
    """Return the mean absolute value of each channel with all channels on.

    Args:
        masked: The CNN.
        images: (batch, channels, height, width) float, normalised.

    Returns:
        (batch, mask_size) float32.
    """
    state = masked.begin(images, record=True)
    masked.finish(state)
    points = state.points or {}
    return torch.cat([points[gate].float().abs().mean((2, 3)) for gate in range(len(masked.gates))], dim=1)
