"""Running any agent over a whole split: which mask does it give each image, and what does deciding cost?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.gating.gate_policy import check_penalty
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.program.path import Executed

Observation: TypeAlias = dict[str, NDArray[Any]]


class Predictor(Protocol):
    """Anything with a batched ``predict``: a Stable-Baselines3 model, or an agent of one's own."""

    def predict(self, observation: Any) -> Any:
        """From a dict of arrays (batch, ...) to actions (batch, bits) of 0 and 1, or (actions, state)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Masks:
    """Masks that are there beforehand, as a baseline gives them.

    Attributes:
        name: As in tables.
        mask: (mask_size,) for every image the same, or (images, mask_size); 0 and 1, or bool.
        macs: MACs of deciding the mask of one image.
        note: What a reader of the table has to know.
    """

    name: str
    mask: Tensor
    macs: float = 0.0
    note: str = ""


Agent: TypeAlias = DynamicCNN | Masks | Tensor | NDArray[Any] | Predictor | Callable[[Observation], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Decided:
    """What an agent decided for a split.

    Attributes:
        masks: (images, mask_size) bool on the CPU.
        logits: The CNN's output under them, (images, ...) float32, if it came on the way.
        macs: MACs of deciding the mask of one image.
        notes: What a reader of the figures has to know.
    """

    masks: Tensor
    logits: Tensor | None
    macs: float
    notes: tuple[str, ...] = ()


def shown_penalty(bounds: tuple[float, float] | None, wanted: float | None, of_reward: float) -> float | None:
    """Return the lambda that an agent is told: None if it was trained for one only.

    Args:
        bounds: The lambdas that it was trained for.
        wanted: What was asked for.
        of_reward: lambda of the figure ``reward``, which is the default where it lies within; else the middle is.

    Raises:
        InvalidInputError: If what was asked for lies outside.
    """
    if bounds is None:
        return None
    check_penalty(bounds, wanted)
    if wanted is not None:
        return wanted
    return of_reward if bounds[0] <= of_reward <= bounds[1] else sum(bounds) / 2


def decide_dynamic(agent: DynamicCNN, dataset: Dataset, batch_size: int, agent_penalty: float | None = None) -> Decided:
    """Let a dynamic CNN's own policy decide on the way through its CNN: one forward pass an image."""
    device = agent.masked.device
    masks, logits = decide_on_the_way(lambda images: agent.run(images, agent_penalty), dataset, device, batch_size)
    return Decided(masks, logits, float(agent.policy.macs))


def decide_on_the_way(
    run: Callable[[Tensor], Executed], dataset: Dataset, device: torch.device, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Run every image of a split once with a policy inside its CNN.

    Args:
        run: From normalised images (batch, channels, height, width) to outputs and the masks that were used.
        dataset: The split.
        device: Where it runs.
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
    """Take masks as they are.

    Raises:
        InvalidInputError: If they are not (mask_size,) or (images, mask_size), or have values other than 0 and 1.
    """
    agent = agent if isinstance(agent, Masks) else Masks("masks", torch.as_tensor(agent))
    mask, count = agent.mask.detach().cpu(), len(dataset)
    if mask.shape not in ((masked.mask_size,), (count, masked.mask_size)):
        raise InvalidInputError(
            f"The masks {agent.name!r} have shape {tuple(mask.shape)}; ({masked.mask_size},) for one mask or "
            f"({count}, {masked.mask_size}) for one an image is needed."
        )
    if not ((mask == 0) | (mask == 1)).all():
        wrong = mask[(mask != 0) & (mask != 1)].flatten()[0].item()
        raise InvalidInputError(f"The masks {agent.name!r} have the value {wrong:.4g}; only 0 and 1 are allowed.")
    notes = (agent.note,) if agent.note else ()
    return Decided(mask.bool().expand(count, -1).contiguous(), None, float(agent.macs), notes)


def is_masks(agent: object) -> bool:
    """Return whether an agent is masks that are there beforehand."""
    return isinstance(agent, Masks | Tensor | np.ndarray)
