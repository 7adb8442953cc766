"""Baselines without reinforcement learning: simple ones, and static masks that are trained or searched."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn

from prunegym.agents.evaluation.masks import Masks
from prunegym.models.data.dataset import Dataset
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.gating import importance
from prunegym.models.gating.static_policy import StaticPolicy, fixed_policy, static_start
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.storage.cnn_info import CNNInfo
from prunegym.models.storage.model_file import Bundle
from prunegym.models.training.preparation import PrepareConfig, prepare
from prunegym.models.training.tuning import TuneConfig, tune
from prunegym.validation import choice, finite, typed


@torch.no_grad()
@typed
def greedy_static(
    masked: MaskedCNN, train: Dataset, share: float, *, images: int = 256, candidates: int = 8, step_share: float = 0.02
) -> Masks:
    """Search the best static mask of a frozen CNN: remove the channels that raise the loss least per MAC saved.

    Each round takes the ``candidates`` channels with the smallest Taylor score per MAC under the current mask
    (Molchanov et al. 2017), and measures the cross-entropy on training images without each of them. Then it removes
    those with the smallest rise per MAC saved, one or more, until ``step_share`` is saved.

    Args:
        masked: The CNN.
        train: Training images.
        share: MAC share to end at. The result is the last mask that costs at least this much.
        images: Number of training images to measure the loss on.
        candidates: Channels to try in each round.
        step_share: MAC share that a round saves at most, unless one channel alone saves more.

    Returns:
        The mask (mask_size,).
    """
    finite("The MAC share", share, above=0)
    sample = train.sample(images)
    batch = sample.batch(torch.arange(len(sample)), device=masked.device)
    mask = torch.ones(masked.mask_size)
    while True:
        left = _remove_best(masked, sample, batch, mask, share, candidates, step_share)
        if torch.equal(left, mask):
            return Masks("greedy static", mask.bool())
        mask = left


def _remove_best(
    masked: MaskedCNN, sample: Dataset, batch: Tensor, mask: Tensor, share: float, candidates: int, step_share: float
) -> Tensor:
    before = masked.cost.mac_share(mask[None]).item()
    saved = before - _share_without(masked, mask)
    possible = (mask == 1) & (before - saved >= share)
    # Taylor score per MAC saved: the squared gradient in the mask, divided by the MAC share of the channel.
    scores = _gradient(masked, sample, batch, mask).square() / saved.clamp_min(1e-12)
    tried = scores.masked_fill(~possible, float("inf")).argsort()[: min(candidates, int(possible.sum()))]
    base = _loss(masked, sample, batch, mask)
    rises = [
        (_loss(masked, sample, batch, _without(mask, channel)) - base) / saved[channel].item() for channel in tried
    ]
    left = mask
    for index in sorted(range(len(tried)), key=rises.__getitem__)[: max(1, candidates // 2)]:
        smaller = _without(left, tried[index])
        spent = masked.cost.mac_share(smaller[None]).item()
        if spent < share or (left is not mask and before - spent > step_share):
            break
        left = smaller
    return left


def _without(mask: Tensor, channel: Tensor) -> Tensor:
    return mask.index_fill(0, channel, 0)


def _share_without(masked: MaskedCNN, mask: Tensor) -> Tensor:
    """Return the MAC share without each channel in turn, (mask_size,) float64; the current one for masked channels."""
    kept = masked.cost.kept(mask[None])
    fewer = (kept - torch.eye(kept.shape[1], dtype=torch.float64)).clamp_min(0)
    widths = torch.tensor([gate.width for gate in masked.gates])
    shares = (masked.cost.macs_of_widths(fewer) / masked.cost.total_macs).repeat_interleave(widths)
    return torch.where(mask == 1, shares, masked.cost.mac_share(mask[None]))


def _loss(masked: MaskedCNN, sample: Dataset, batch: Tensor, mask: Tensor) -> float:
    rows = mask.expand(len(batch), -1).to(batch.device)
    return sample.loss(masked(batch, rows), torch.arange(len(batch))).item()


def _gradient(masked: MaskedCNN, sample: Dataset, batch: Tensor, mask: Tensor) -> Tensor:
    """Return the root mean square over images of the loss's gradient in the mask: (mask_size,)."""
    total = torch.zeros(masked.mask_size)
    for indices in sample.index_batches(128):
        with torch.enable_grad():
            rows = mask.repeat(len(indices), 1).requires_grad_()
            loss = sample.loss(masked(batch[indices], rows.to(batch.device)), indices) * len(indices)
            (gradient,) = torch.autograd.grad(loss, rows)
        total += gradient.square().sum(0)
    return (total / len(batch)).sqrt()


@typed
def taylor_static(masked: MaskedCNN, train: Dataset, share: float) -> Masks:
    """Return the static mask with the largest Taylor scores per MAC over all gates, at a MAC share."""
    scores = importance.taylor_scores(masked, train) / importance.prices(masked)
    return Masks("static, Taylor", importance.at_mac_share(scores, masked, share))


@typed
def learned_static(
    masked: MaskedCNN, info: CNNInfo, train: Dataset, share: float, *, epochs: float = 5, seed: int = 0
) -> Masks | DynamicCNN:
    """Learn a static mask for a frozen CNN: its static baseline.

    It is trained like refined gates, except that the logits do not depend on the image.

    Args:
        masked: The CNN; it is not changed. If it has constants, the mask gets separate constants, learnt with it.
        info: Its description.
        train: Training images.
        share: MAC share. The mask keeps the channels with the largest logits, up to this share.
        epochs: Passes over the training images.
        seed: Seed of the training.

    Returns:
        The mask (mask_size,); with constants, the CNN with both.
    """
    constants: Literal["constant"] | None = None if masked.constants is None else "constant"
    config = TuneConfig(target_macs=min(1.0, share), epochs=epochs, train_cnn=False, compensation=constants, seed=seed)
    tuned, gates = _prepare_static(without_constants(masked), train, config, learned=True)
    if constants is None:
        return Masks("static, learned", gates.mask_logits() > 0)
    return DynamicCNN(tuned, gates, info)


def with_constants(
    found: Masks, masked: MaskedCNN, info: CNNInfo, train: Dataset, *, epochs: float, seed: int = 0
) -> Masks | DynamicCNN:
    """Give a static mask learnt constants if the CNN that it is compared on has some.

    Args:
        found: The mask.
        masked: The CNN; it is not changed.
        info: Its description.
        train: Training images.
        epochs: Passes over them.
        seed: Of the training.
    """
    if masked.constants is None:
        return found
    config = TuneConfig(1.0, epochs, train_cnn=False, train_gates=False, compensation="constant", seed=seed)
    own, policy = without_constants(masked), fixed_policy(masked, found.mask.float())
    tune(own, policy, train, config)
    return DynamicCNN(own, policy, info)


def without_constants(masked: MaskedCNN) -> MaskedCNN:
    """Return a CNN whose masked channels are zero: a copy if it has constants, which were learnt for other masks."""
    return masked if masked.constants is None else copy.deepcopy(masked).compensate(None)


@typed
def pruned_and_tuned(
    network: nn.Module | MaskedCNN,
    info: CNNInfo,
    train: Dataset,
    share: float,
    epochs: float,
    *,
    learned: bool,
    seed: int = 0,
) -> DynamicCNN:
    """Prune the original network with one static mask and fine-tune it: the static baseline for a prepared CNN.

    Args:
        network: The original network; it is copied.
        info: Its description.
        train: Training images.
        share: MAC share.
        epochs: Passes over the training images. For a fair comparison, use as many as for the other agent.
        learned: Learn the mask together with the CNN. Otherwise keep the Taylor mask, the same share of each gate.
        seed: Seed of the training.

    Returns:
        The fine-tuned CNN with its mask.
    """
    masked = network if isinstance(network, MaskedCNN) else MaskedCNN(network, train.batch(torch.arange(1)))
    config = TuneConfig(target_macs=min(1.0, share), epochs=epochs, train_gates=learned, seed=seed)
    return DynamicCNN(*_prepare_static(masked, train, config, learned=learned), info)


def _prepare_static(
    masked: MaskedCNN, train: Dataset, tuning: TuneConfig, *, learned: bool
) -> tuple[MaskedCNN, StaticPolicy]:
    start = static_start(masked, train, tuning.target or 1.0, learned=learned)
    config = PrepareConfig(imitation=None, tune=tuning, seed=tuning.seed or 0)
    tuned, gates = prepare(masked, train, config, policy=start)
    return tuned, cast(StaticPolicy, gates)


def keep_all(model: Bundle, share: float) -> Masks:  # noqa: ARG001
    """Keep every channel."""
    return Masks("keep all", torch.ones(model.masked.mask_size, dtype=torch.bool))


def random_masks(model: Bundle, share: float) -> Masks:
    """Keep random channels: the same number for each image, but other channels."""
    generator = torch.Generator().manual_seed(model.seed)
    return Masks("random", random_masks_at(model.masked, len(model.data["evaluated"]), share, generator))


def random_masks_at(masked: MaskedCNN, images: int, share: float, generator: torch.Generator) -> Tensor:
    """Return random masks (images, mask_size) bool at a MAC share."""
    return importance.at_mac_share(torch.rand(images, masked.mask_size, generator=generator), masked, share)


def l1(model: Bundle, share: float) -> Masks:
    """Keep the filters with the largest L1 norm, the same share of each gate (Li et al. 2017). Static."""
    return Masks("L1", importance.at_mac_share(importance.l1_scores(model.masked), model.masked, share, per_gate=True))


def taylor(model: Bundle, share: float) -> Masks:
    """Keep the channels with the largest Taylor score, the same share of each gate (Molchanov et al. 2017). Static."""
    scores = importance.taylor_scores(model.masked, model.data["train"])
    return Masks("Taylor", importance.at_mac_share(scores, model.masked, share, per_gate=True))


def taylor_global(model: Bundle, share: float) -> Masks:
    """Keep the channels with the largest Taylor score per MAC, over all gates. Static."""
    return dataclasses.replace(taylor_static(model.masked, model.data["train"], share), name="Taylor, all gates")


ORACLE = "An oracle: it first sees a dense forward pass of the image, which counts as the cost of its decision."


def activation_topk(model: Bundle, share: float) -> Masks:
    """Keep the channels with the largest mean activation in a dense pass, the same share of each gate."""
    masks = importance.at_mac_share(_over_images(model, importance.activations), model.masked, share, per_gate=True)
    return Masks("activation top-k", masks, model.masked.cost.total_macs, ORACLE)


def ranked_activation(model: Bundle, share: float) -> Masks:
    """Keep the channels with the best :func:`channel_scores` over all gates, as the teacher of imitation does."""
    masks = importance.at_mac_share(_over_images(model, importance.channel_scores), model.masked, share)
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
"""Baselines without training, by name. The others are in
:data:`prunegym.agents.comparison.entries.TRAINED_BASELINES`."""


@typed
def make_baseline(name: str, model: Bundle, share: float) -> Masks:
    """Make the masks of a baseline.

    Args:
        name: A key of :data:`BASELINES`.
        model: The frozen CNN with a seed and two data sets: the ``evaluated`` images, whose labels are not used, and
            ``train``, for scores that need labels.
        share: MAC share of the masks, above 0 and at most 1.

    Raises:
        UnknownNameError: If there is no such baseline.
    """
    return BASELINES[choice("baseline", name, BASELINES)](model, share)
