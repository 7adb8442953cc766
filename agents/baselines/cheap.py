"""Baselines without learning, each at a wanted share of the MACs: what an agent has to beat."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from prunegym.agents.evaluation.masks import Masks
from prunegym.errors import UnknownNameError
from prunegym.models.data.dataset import Dataset
from prunegym.models.masking.importance import (
    activations,
    at_mac_share,
    channel_scores,
    l1_scores,
    prices,
    taylor_scores,
)
from prunegym.models.masking.masked_cnn import MaskedCNN


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What a baseline is made for.

    Attributes:
        masked: The CNN, frozen.
        dataset: The split on which it will be evaluated; its labels are not looked at.
        train: Training images, for scores that need labels.
        share: MAC share to spend, from above 0 to 1.
        seed: Of what is drawn.
        batch_size: Images in one forward pass.
    """

    masked: MaskedCNN
    dataset: Dataset
    train: Dataset
    share: float
    seed: int = 0
    batch_size: int = 250


def keep_all(setting: Setting) -> Masks:
    """Keep every channel."""
    return Masks("keep all", torch.ones(setting.masked.mask_size, dtype=torch.bool))


def random_masks(setting: Setting) -> Masks:
    """Keep random channels, others for each image, the same number for all."""
    generator = torch.Generator().manual_seed(setting.seed)
    return Masks("random", random_masks_at(setting.masked, len(setting.dataset), setting.share, generator))


def random_masks_at(masked: MaskedCNN, images: int, share: float, generator: torch.Generator) -> Tensor:
    """Return random masks (images, mask_size) bool that spend a MAC share, the same number of channels in each."""
    return at_mac_share(torch.rand(images, masked.mask_size, generator=generator), masked, share)


def l1(setting: Setting) -> Masks:
    """Keep the filters of the largest L1 norm, the same share of each gate (Li et al. 2017). Static."""
    return Masks("L1", at_mac_share(l1_scores(setting.masked), setting.masked, setting.share, per_gate=True))


def taylor(setting: Setting) -> Masks:
    """Keep the channels that the loss on training images depends on most, the same share of each gate. Static."""
    scores = taylor_scores(setting.masked, setting.train)
    return Masks("Taylor", at_mac_share(scores, setting.masked, setting.share, per_gate=True))


def taylor_global(setting: Setting) -> Masks:
    """Keep the channels with the largest Taylor score for the price of their MACs, over all gates. Static."""
    scores = taylor_scores(setting.masked, setting.train) / prices(setting.masked)
    return Masks("Taylor, all gates", at_mac_share(scores, setting.masked, setting.share))


ORACLE = "An oracle: it looks at a dense forward pass of the image first, which is counted as the cost of deciding."


def activation_topk(setting: Setting) -> Masks:
    """Keep the channels with the largest mean activation in a dense pass of the image, the same share of each gate."""
    masks = at_mac_share(_over_images(setting, activations), setting.masked, setting.share, per_gate=True)
    return Masks("activation top-k", masks, setting.masked.cost.total_macs, ORACLE)


def ranked_activation(setting: Setting) -> Masks:
    """Keep the best channels of all gates by :func:`channel_scores` of the image: the teacher of imitation."""
    masks = at_mac_share(_over_images(setting, channel_scores), setting.masked, setting.share)
    return Masks("ranked activation", masks, setting.masked.cost.total_macs, ORACLE)


@torch.no_grad()
def _over_images(setting: Setting, score: Callable[[MaskedCNN, Tensor], Tensor]) -> Tensor:
    batches = setting.dataset.batches(setting.batch_size, device=setting.masked.device)
    return torch.cat([score(setting.masked, images).cpu() for _, images in batches])


BASELINES: dict[str, Callable[[Setting], Masks]] = {
    "keep-all": keep_all,
    "random": random_masks,
    "l1": l1,
    "taylor": taylor,
    "taylor-global": taylor_global,
    "activation-topk": activation_topk,
    "ranked-activation": ranked_activation,
}
"""The cheap baselines by name; those that are learned are in :mod:`prunegym.agents.baselines.static_masks`."""


def make_baseline(name: str, setting: Setting) -> Masks:
    """Make the masks of a baseline.

    Args:
        name: A key of :data:`BASELINES`.
        setting: What it is made for.

    Raises:
        UnknownNameError: If there is no such baseline.
    """
    if name not in BASELINES:
        raise UnknownNameError("baseline", name, BASELINES)
    return BASELINES[name](setting)
