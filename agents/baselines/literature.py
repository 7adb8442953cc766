"""Published methods for comparison: DECORE, gates trained by gradient with and without L1, and the best of K masks."""

from __future__ import annotations

import copy

import torch
from torch import nn

from prunegym.agents.baselines.static_masks import random_masks_at
from prunegym.agents.evaluation.masks import Masks, penalised_accuracy
from prunegym.models.data.dataset import Dataset
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.gating.importance import at_mac_share
from prunegym.models.gating.static_policy import Policy, StaticPolicy, StraightThrough, rollout
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.storage.cnn_info import CNNInfo
from prunegym.models.training.cnn_training import epoch_batches
from prunegym.models.training.mac_target import meet_target
from prunegym.models.training.preparation import ImitationConfig, PrepareConfig, prepare
from prunegym.models.training.tuning import TuneConfig
from prunegym.validation import typed

SPARSITY = 0.5
"""What keeping every channel costs in the loss of L1-sparse gates, in nats."""


@typed
def decore(masked: MaskedCNN, train: Dataset, share: float, *, epochs: float = 5, seed: int = 0) -> Masks:
    """Learn one Bernoulli variable for each channel by REINFORCE, without any input (DECORE: Alwani et al. 2022).

    All agents of a layer share one reward: the share of channels that they drop if the answer is right, and minus that
    share if it is wrong. Two things differ from the paper, because the agents would hardly move within the few epochs
    of a comparison: they start at a probability of 0.88 instead of near 1, and the mean reward of a layer over the
    batch is subtracted as a baseline. The CNN stays frozen. The mask keeps the channels with the largest logits, up to
    the MAC share.

    Args:
        masked: The CNN; it is not changed.
        train: Training images.
        share: MAC share.
        epochs: Passes over the training images.
        seed: Seed of the order of images and of the masks.

    Returns:
        The mask (mask_size,).
    """
    device = masked.device
    policy = StaticPolicy(MaskFeatures(masked)).to(device)
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3)
    batches_an_epoch = len(epoch_batches(len(train), 128, seed, 0)[0])
    for step in range(max(1, round(epochs * batches_an_epoch))):
        epoch, number = divmod(step, batches_an_epoch)
        batches, generator = epoch_batches(len(train), 128, seed, epoch)
        images = train.batch(batches[number], device=device, augment=generator)
        logits = torch.cat([policy.logits(index, images) for index in range(len(policy.decisions))], dim=1)
        with torch.no_grad():
            mask = (torch.rand(logits.shape, generator=generator).to(device) < torch.sigmoid(logits)).float()
            score = train.score(masked(images, mask), batches[number])
            dropped = torch.stack([1 - part.mean(1) for part in masked.split(mask)], dim=1)
            # The reward of a layer's agents: the share that they drop, and minus that for a wrong answer.
            rewards = dropped * (2 * score - 1).to(dropped)[:, None]
            advantages = rewards - rewards.mean(0)
        log_chance = -nn.functional.binary_cross_entropy_with_logits(logits, mask, reduction="none")
        chosen = torch.stack([part.sum(1) for part in masked.split(log_chance)], dim=1)
        # REINFORCE (Williams 1992): the loss is -advantage * log probability of the chosen mask.
        optimizer.zero_grad(set_to_none=True)
        (-(advantages * chosen).sum(1).mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Masks("DECORE", at_mac_share(policy.mask_logits(), masked, share))


def gates_by_gradient(
    masked: MaskedCNN, info: CNNInfo, train: Dataset, share: float, epochs: float, *, sparse: bool, seed: int = 0
) -> DynamicCNN:
    """Train gates on the frozen CNN: method 1 of the article (straight-through, Gumbel noise) or 2 (L1-sparse).

    Args:
        masked: The CNN; it is copied.
        info: Its description.
        train: Training images.
        share: Total MAC share.
        epochs: Passes over the training images, after 600 steps of imitation.
        sparse: Put a price on ||M(x)||_1 instead of a MAC target, and shift the logits to the target afterwards.
        seed: Seed of the training.
    """
    sparsity = SPARSITY / masked.mask_size if sparse else None
    tuning = TuneConfig(min(1.0, share), epochs, train_cnn=False, seed=seed, sparsity=sparsity)
    imitation = ImitationConfig(mac_share=min(1.0, share), seed=seed)
    return DynamicCNN(*prepare(masked, train, PrepareConfig(imitation, tuning, seed=seed)), info)


@torch.no_grad()
@typed
def best_of_k(
    masked: MaskedCNN,
    policy: Policy | None,
    dataset: Dataset,
    share: float,
    *,
    k: int = 16,
    seed: int = 0,
    penalty: float = 0.5,
) -> Masks:
    """Draw K masks for each image and keep the one with the highest reward: an oracle, because it sees the labels.

    Args:
        masked: The CNN.
        policy: Gates to draw masks from, after their logits are shifted to the MAC share. Without gates, random
            channels are kept.
        dataset: The images to evaluate.
        share: Total MAC share of the shifted gates, or MAC share of random masks.
        k: Masks for each image.
        seed: Seed of the masks.
        penalty: lambda of the reward, correct - lambda * MAC share.

    Returns:
        Masks (images, mask_size).
    """
    gates = copy.deepcopy(policy) if isinstance(policy, GatePolicy) else None
    if gates is not None:
        meet_target(masked, gates, dataset, share)
    generator = torch.Generator().manual_seed(seed)
    choose, device = StraightThrough(generator), masked.device
    best = torch.full((len(dataset),), -float("inf"), dtype=torch.float64)
    masks = torch.zeros(len(dataset), masked.mask_size, dtype=torch.bool)
    for _ in range(k):
        random = random_masks_at(masked, len(dataset), share, generator) if gates is None else None
        for indices, images in dataset.batches(device=device):
            if gates is None:
                assert random is not None
                mask = random[indices].float().to(device)
                output = masked(images, mask)
            else:
                output, mask, _ = rollout(masked, gates, images, choose)
            scores = dataset.score(output, indices).cpu()
            reward = penalised_accuracy(scores, masked.cost.mac_share(mask).cpu(), penalty)
            better = reward > best[indices]
            best[indices[better]], masks[indices[better]] = reward[better], mask.bool().cpu()[better]
    note = f"An oracle: it sees the label and keeps the best of {k} masks for each image. The trials are not counted."
    return Masks(f"best of {k}", masks, 0.0 if gates is None else float(gates.macs), note)
