"""Baselines without training, each at a given MAC share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from prunegym.agents.baselines.static_masks import taylor_static
from prunegym.agents.evaluation.masks import Masks
from prunegym.models.masking.importance import activations, at_mac_share, channel_scores, l1_scores, taylor_scores
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.storage.model_file import Bundle
from prunegym.validation import choice


def keep_all(model: Bundle, share: float) -> Masks:  # noqa: ARG001
    """Keep every channel."""
    return Masks("keep all", torch.ones(model.masked.mask_size, dtype=torch.bool))


def random_masks(model: Bundle, share: float) -> Masks:
    """Keep random channels: the same number for each image, but other channels."""
    generator = torch.Generator().manual_seed(model.seed)
    return Masks("random", random_masks_at(model.masked, len(model.data["evaluated"]), share, generator))


def random_masks_at(masked: MaskedCNN, images: int, share: float, generator: torch.Generator) -> Tensor:
    """Return random masks (images, mask_size) bool at a MAC share."""
    return at_mac_share(torch.rand(images, masked.mask_size, generator=generator), masked, share)


def l1(model: Bundle, share: float) -> Masks:
    """Keep the filters with the largest L1 norm, the same share of each gate (Li et al. 2017). Static."""
    return Masks("L1", at_mac_share(l1_scores(model.masked), model.masked, share, per_gate=True))


def taylor(model: Bundle, share: float) -> Masks:
    """Keep the channels with the largest Taylor score, the same share of each gate (Molchanov et al. 2017). Static."""
    scores = taylor_scores(model.masked, model.data["train"])
    return Masks("Taylor", at_mac_share(scores, model.masked, share, per_gate=True))


def taylor_global(model: Bundle, share: float) -> Masks:
    """Keep the channels with the largest Taylor score per MAC, over all gates. Static."""
    return dataclasses.replace(taylor_static(model.masked, model.data["train"], share), name="Taylor, all gates")


ORACLE = "An oracle: it sees a dense forward pass of the image first, which counts as the cost of deciding."


def activation_topk(model: Bundle, share: float) -> Masks:
    """Keep the channels with the largest mean activation in a dense pass, the same share of each gate."""
    masks = at_mac_share(_over_images(model, activations), model.masked, share, per_gate=True)
    return Masks("activation top-k", masks, model.masked.cost.total_macs, ORACLE)


def ranked_activation(model: Bundle, share: float) -> Masks:
    """Keep the channels with the best :func:`channel_scores` over all gates, as the teacher of imitation does."""
    masks = at_mac_share(_over_images(model, channel_scores), model.masked, share)
    return Masks("ranked activation", masks, model.masked.cost.total_macs, ORACLE)


@torch.no_grad()
def _over_images(model: Bundle, score: Callable[[MaskedCNN, Tensor], Tensor]) -> Tensor:
    batches = model.data["evaluated"].batches(device=model.masked.device)
    return torch.cat([score(model.masked, images).cpu() for _, images in batches])


BASELINES: dict[str, Callable[[Bundle, float], Masks]] = {
    "keep-all": keep_all,
    "random": random_masks,
    "l1": l1,
    "taylor": taylor,
    "taylor-global": taylor_global,
    "activation-topk": activation_topk,
    "ranked-activation": ranked_activation,
}
"""The untrained baselines by name. For the others see :data:`prunegym.agents.comparison.entries.TRAINED_BASELINES`."""


def make_baseline(name: str, model: Bundle, share: float) -> Masks:
    """Make the masks of a baseline.

    Args:
        name: A key of :data:`BASELINES`.
        model: The frozen CNN with a seed and two data sets: the ``evaluated`` images, whose labels are not used, and
            ``train``, for scores that need labels.
        share: MAC share to spend, above 0 and at most 1.

    Raises:
        UnknownNameError: If there is no such baseline.
    """
    return BASELINES[choice("baseline", name, BASELINES)](model, share)
