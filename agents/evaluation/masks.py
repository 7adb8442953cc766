"""The masks of an agent for the images of a split, the outputs under these masks, and controls to compare with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunegym.models.data.dataset import Dataset
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.gating.gate_policy import check_penalty
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.program.path import Executed
from prunegym.validation import bits, finite, shape

Observation: TypeAlias = dict[str, NDArray[Any]]


class Predictor(Protocol):
    """Anything with a batched ``predict``: a Stable-Baselines3 model or your own agent."""

    def predict(self, observation: Any) -> Any:
        """Return actions (batch, bits) of 0 and 1 for a dict of arrays (batch, ...), or a pair (actions, state)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Masks:
    """Fixed masks, such as those of a baseline.

    Attributes:
        name: Name in tables.
        mask: (mask_size,) for all images, or (images, mask_size); 0 and 1, or bool.
        macs: MACs that the decision takes for one image.
        note: An explanation for readers of the table.
    """

    name: str
    mask: Tensor
    macs: float = 0.0
    note: str = ""


Agent: TypeAlias = DynamicCNN | Masks | Tensor | NDArray[Any] | Predictor | Callable[[Observation], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Decided:
    """The decisions of an agent for a split.

    Attributes:
        masks: (images, mask_size) bool on the CPU.
        logits: The CNN's output under them, (images, ...) float32; None if the CNN was not run.
        macs: MACs that the decision takes for one image.
        notes: Explanations that a reader of the figures needs.
    """

    masks: Tensor
    logits: Tensor | None
    macs: float
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the MACs, because they come from the agent."""
        finite("The number of MACs that the agent needs to decide (macs)", self.macs, 0)


def shown_penalty(bounds: tuple[float, float] | None, wanted: float | None, of_reward: float) -> float | None:
    """Return the lambda that an agent observes; None if it was trained for one lambda only.

    Args:
        bounds: The range of lambdas that it was trained for.
        wanted: The lambda that you asked for. With None it is ``of_reward`` if that is in the range, else the middle.
        of_reward: lambda in the figure ``reward``.

    Raises:
        InvalidInputError: If ``wanted`` lies outside the range.
    """
    if bounds is None:
        return None
    check_penalty(bounds, wanted)
    if wanted is not None:
        return wanted
    return of_reward if bounds[0] <= of_reward <= bounds[1] else sum(bounds) / 2


def decide_dynamic(
    agent: DynamicCNN, dataset: Dataset, batch_size: int, wanted: float | None, of_reward: float
) -> Decided:
    """Run a dynamic CNN, whose policy decides during the forward pass: one pass for each image.

    Args:
        agent: The dynamic CNN.
        dataset: The split.
        batch_size: Images in one forward pass.
        wanted: See :func:`shown_penalty`.
        of_reward: lambda in the figure ``reward``.
    """
    bounds, device = agent.policy.penalty_range, agent.masked.device
    shown = shown_penalty(bounds, wanted, of_reward)
    notes: tuple[str, ...] = ()
    if bounds is not None and wanted is None and shown != of_reward:
        ends = f"from {bounds[0]:g} to {bounds[1]:g}"
        notes = (f"The policy is for lambda {ends} and got {shown:g}; the reward is at {of_reward:g}.",)
    masks, logits = decide_on_the_way(lambda images: agent.run(images, shown), dataset, device, batch_size)
    return Decided(masks, logits, float(agent.policy.macs), notes)


def decide_on_the_way(
    run: Callable[[Tensor], Executed], dataset: Dataset, device: torch.device, batch_size: int = 250
) -> tuple[Tensor, Tensor]:
    """Run every image of a split once through a CNN whose policy decides during the forward pass.

    Args:
        run: Takes normalised images (batch, channels, height, width); returns outputs and the masks that were used.
        dataset: The split.
        device: Torch device of the CNN.
        batch_size: Images in one forward pass.

    Returns:
        Masks (images, mask_size) bool and outputs (images, ...) float32, on the CPU.
    """
    masks, logits = [], []
    for _, images in dataset.batches(batch_size, device=device):
        done = run(images)
        masks.append(done.mask.cpu())
        logits.append(done.output.float().cpu())
    return torch.cat(masks), torch.cat(logits)


def decide_fixed(agent: Masks | Tensor | NDArray[Any], masked: MaskedCNN, dataset: Dataset) -> Decided:
    """Use fixed masks.

    Raises:
        InvalidInputError: If they are not (mask_size,) or (images, mask_size), or have values other than 0 and 1.
    """
    agent = agent if isinstance(agent, Masks) else Masks("masks", torch.as_tensor(agent))
    mask, count, size = agent.mask.detach(), len(dataset), masked.mask_size
    name = f"The mask {agent.name!r}"
    hint = f"Give ({size},) for one mask for all images, or ({count}, {size}) for one mask for each image."
    bits(name, shape(name, mask, (size,) if mask.ndim == 1 else (count, size), hint))
    notes = (agent.note,) if agent.note else ()
    return Decided(mask.cpu().bool().expand(count, -1).contiguous(), None, agent.macs, notes)


def is_masks(agent: object) -> bool:
    """Return whether an agent is a set of fixed masks."""
    return isinstance(agent, Masks | Tensor | np.ndarray)


class MaskCache:
    """Runs the images of a split under masks, and reuses outputs that it has computed before.

    Args:
        masked: The CNN, in eval mode.
        dataset: The images.
        batch_size: Images in one forward pass.
    """

    def __init__(self, masked: MaskedCNN, dataset: Dataset, batch_size: int = 250) -> None:
        self.masked, self.dataset, self.batch_size = masked, dataset, batch_size
        self._known: list[tuple[Tensor, Tensor]] = []

    def add(self, masks: Tensor, logits: Tensor) -> None:
        """Store masks (images, mask_size) bool and the outputs (images, ...) under them."""
        self._known.append((masks, logits))

    def __call__(self, masks: Tensor) -> Tensor:
        """Return the outputs (images, ...) float32 on the CPU under masks (images, mask_size) bool, or (mask_size,)."""
        masks = masks.expand(len(self.dataset), -1)
        logits = torch.empty(len(masks), *self.masked.output_shape, dtype=torch.float32)
        left = torch.ones(len(masks), dtype=torch.bool)
        for known, output in self._known:
            same = left & (known == masks).all(1)
            logits[same] = output[same]
            left &= ~same
        device = self.masked.device
        parts = torch.split(left.nonzero()[:, 0], self.batch_size) if left.any() else ()
        for part, images in self.dataset.stream(parts, device=device):
            logits[part] = self.masked(images, masks[part].float().to(device)).float().cpu()
        self.add(masks, logits)
        return logits


def static_mask(masks: Tensor, masked: MaskedCNN) -> Tensor:
    """Return the static control's mask: for each gate the channels kept most often, as many as are kept on average.

    Args:
        masks: (images, mask_size) bool.
        masked: The CNN with the gates.

    Returns:
        (mask_size,) bool. The average number is rounded to the nearest integer. If channels are kept equally often,
        the first ones are used.
    """
    control = torch.zeros(masked.mask_size, dtype=torch.bool)
    for share, part in zip(masked.split(masks.double().mean(0)), masked.split(control), strict=True):
        count = math.floor(share.sum().item() + 0.5)
        part[share.argsort(descending=True, stable=True)[:count]] = True
    return control


def derangement(count: int, seed: int = 0) -> Tensor:
    """Return a random permutation (count,) int64 in which no image keeps its place, unless there is only one."""
    cycle = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    # One cycle through all images: each gets the next one, so none gets itself.
    shuffled = torch.empty_like(cycle)
    shuffled[cycle] = cycle.roll(-1)
    return shuffled


def penalised_accuracy(correct: Tensor, total_mac_shares: Tensor | float, penalty: float) -> Tensor:
    """Return correct - penalty * total MAC share: accuracy minus the cost of the masked CNN and its policy.

    This is the figure ``reward`` in tables and JSON. All agents are compared by it, whatever reward they were trained
    for. The reward of an environment is different: it can be any function, and it does not include the policy's MACs.

    Args:
        correct: (images,) bool, or accuracies.
        total_mac_shares: (images,), the MAC shares of masked CNN and policy, or their mean.
        penalty: lambda.

    Returns:
        (images,) float64.
    """
    return correct.double() - penalty * total_mac_shares


def count_distinct(masks: Tensor) -> int:
    """Return the number of different masks in (images, mask_size) bool."""
    return len({row.tobytes() for row in np.packbits(masks.numpy(), axis=1)})


def verdict(correct: Tensor, shuffled_correct: Tensor, distinct_masks: int) -> tuple[bool, str]:
    """Decide whether a policy is static: whether each image could get another image's mask.

    A policy is static if it has one mask, or if its masks work equally well on other images. Let b be the number of
    images that only their own mask gets right, and c the number that only another image's mask gets right. The two
    masks are equally good if b - c is within two standard errors, b - c <= 2 sqrt(b + c) (McNemar 1947).

    Args:
        correct: (images,) bool, right under the image's own mask; or its score.
        shuffled_correct: (images,) bool, right under another image's mask; or its score.
        distinct_masks: Number of different masks.

    Returns:
        Whether it is static, and a sentence for the table.

    Example:
        >>> right = torch.ones(100, dtype=torch.bool)
        >>> verdict(right, torch.arange(100) >= 30, 100)
        (False, 'The masks depend on the image: those of other images lose 30.0 points, 5.5 standard errors.')
    """
    if distinct_masks == 1:
        return True, "Static: every image gets the same mask."
    # McNemar's statistic, (b - c) / sqrt(b + c), in standard errors: a difference is 1, -1 or 0, so b + c is the sum of
    # squares. For other scores it is the same test, of paired differences.
    differences = correct.double() - shuffled_correct.double()
    points = 100 * differences.mean().item()
    size = differences.norm().item()
    errors = differences.sum().item() / size if size > 0 else 0.0
    gain = 0.0 - points  # not -0.0
    if errors <= 2:
        return True, (
            f"Static in effect: other images' masks do as well ({gain:+.1f} points, within two standard errors), "
            f"so its {distinct_masks} masks do not depend usefully on the image."
        )
    return (
        False,
        f"The masks depend on the image: those of other images lose {points:.1f} points, {errors:.1f} standard errors.",
    )
