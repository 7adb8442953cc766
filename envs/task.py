"""A task: the CNN, the images, the reward, observations and actions."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from prunegym.envs.random_episodes import Penalty, check_penalty
from prunegym.envs.rewards.accuracy import OF_CLASSES, AccuracyTerm, metric
from prunegym.envs.rewards.costs import CostReward
from prunegym.envs.rewards.reward import Reward, RewardFunction, resolve_reward
from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.catalog import Model, load_for, resolve_model
from prunegym.models.checks import check_dataset, check_device, check_output
from prunegym.models.data.dataset import SPLITS, Augment, Dataset, Split
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.gating.features import CLIP, Decision, MaskFeatures, decisions_of
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.named_networks import load_images
from prunegym.models.skipping.stepwise import STEPWISE
from prunegym.models.storage.cnn_info import CNNInfo
from prunegym.models.timing.latency_table import LatencyTable
from prunegym.models.training.cnn_training import answered
from prunegym.validation import choice, finite, whole_number

OBSERVATIONS = ("features", "image")
LARGEST_CACHE = 2**28
"""Most numbers of dense outputs that are stored, 1 GiB. Larger outputs, such as maps of many images, are computed
again each time."""


class TaskArguments(TypedDict, total=False):
    """The keyword arguments of :func:`make_task` that every environment takes."""

    model: Model
    dataset: str | Dataset | Mapping[Split, Dataset] | None
    split: str
    reward: str | RewardFunction
    accuracy: str | AccuracyTerm
    penalty: Penalty | None
    observation: str
    device: str | torch.device
    features: MaskFeatures | None
    augment: Augment
    images: int | None
    latency_table: LatencyTable | Path | str | None
    execution: str


@dataclasses.dataclass(eq=False)
class Task:
    """What an environment simulates. Simulators of one task share its CNN and its cache of dense outputs.

    Attributes:
        masked: The frozen CNN, on ``device``.
        dataset: The images and targets, with their augmentations.
        features: What an agent observes of each image.
        reward: The reward.
        penalty: lambda, or the range from which it is drawn for each episode.
        observation: ``features``, or ``image`` for features and the image.
        layerwise: Whether a step decides one gate; otherwise one step decides all.
        device: Where the CNN runs.
        augment: Whether images are shifted and mirrored at random, as in training. ``flip``: only mirrored, so that
            objects stay where they are in the images on which an agent is used.
        execution: How masked passes run, one of :data:`prunegym.models.skipping.stepwise.STEPWISE`.
    """

    masked: MaskedCNN
    dataset: Dataset
    features: MaskFeatures
    reward: Reward
    penalty: Penalty
    observation: str
    layerwise: bool
    device: torch.device
    augment: Augment
    execution: str = "auto"
    _dense: Tensor | None = dataclasses.field(default=None, init=False, repr=False)
    _dense_known: Tensor | None = dataclasses.field(default=None, init=False, repr=False)
    _warned: bool = dataclasses.field(default=False, init=False, repr=False)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What is decided at each step of an episode."""
        return self.features.decisions

    @functools.cached_property
    def observation_space(self) -> spaces.Dict:
        """A dict of float32 vectors with finite bounds, and the image if it is requested; see the environments."""

        def box(low: float, high: float, size: int) -> spaces.Box:
            return spaces.Box(low, high, (size,), np.float32)

        parts: dict[str, spaces.Space[Any]] = {"features": box(-CLIP, CLIP, max(self.features.sizes))}
        if self.layerwise:
            parts |= {"gate": box(0, 1, len(self.decisions)), "cost": box(0, 1, 1)}
        if isinstance(self.penalty, tuple):
            parts["penalty"] = box(*self.penalty, 1)
        if self.observation == "image":
            parts["image"] = self._image_space()
        return spaces.Dict(parts)

    def _image_space(self) -> spaces.Box:
        shape, norm = self.dataset.image_shape, self.dataset.normalisation
        if self.dataset.images.dtype == torch.uint8:
            return spaces.Box(0, 255, shape, np.uint8)
        if self.dataset.images.dtype == torch.uint16:
            return spaces.Box(0, 65_535, shape, np.uint16)
        return spaces.Box(norm.low, norm.high, shape, np.float32)

    @functools.cached_property
    def action_space(self) -> spaces.MultiBinary:
        """One bit for each channel of the widest decision."""
        return spaces.MultiBinary(max(decision.width for decision in self.decisions))

    def set_penalty(self, penalty: float) -> None:
        """Change lambda for the next episodes.

        Raises:
            InvalidInputError: If lambda is a range, or the new one is not a finite number of at least 0.
        """
        if isinstance(self.penalty, tuple):
            raise InvalidInputError(
                f"The task's penalty is the range {self.penalty}, from which each episode draws its own. To change it, "
                "make the task with one number."
            )
        self.penalty = finite("penalty", penalty, 0.0, hint="The task has one lambda, not a range.")
        self.warn_if_too_expensive()

    def warn_if_too_expensive(self) -> None:
        """Warn once for each task if lambda seems to be meant for another reward."""
        self._warned = self._warned or self.reward.warn_if_too_expensive(self.penalty)

    @torch.inference_mode()
    def dense_logits(self, indices: Tensor, images: Tensor) -> Tensor:
        """Return the CNN's output with all channels on, computed once for each image unless images are augmented.

        Args:
            indices: (batch,) int64, the images' positions within the split.
            images: (batch, channels, height, width) float32, normalised.

        Returns:
            (batch, ...) as the CNN's output.
        """
        if self.augment or len(self.dataset) * math.prod(self.masked.output_shape) > LARGEST_CACHE:
            return self.masked(images)  # type: ignore[no-any-return]
        if self._dense is None or self._dense_known is None:
            self._dense = torch.empty(len(self.dataset), *self.masked.output_shape, device=self.device)
            self._dense_known = torch.zeros(len(self.dataset), dtype=torch.bool, device=self.device)
        missing = ~self._dense_known[indices]
        if missing.any():
            self._dense[indices[missing]] = self.masked(images[missing]).to(self._dense.dtype)
            self._dense_known[indices[missing]] = True
        return self._dense[indices]


def make_task(
    model: Model = "digits",
    dataset: str | Dataset | Mapping[Split, Dataset] | None = None,
    split: str = "train",
    reward: str | RewardFunction | Reward = "l0",
    accuracy: str | AccuracyTerm = "correct",
    penalty: Penalty | None = None,
    observation: str = "features",
    layerwise: bool = False,
    device: str | torch.device = "cpu",
    features: MaskFeatures | None = None,
    augment: Augment = False,
    images: int | None = None,
    latency_table: LatencyTable | Path | str | None = None,
    execution: str = "auto",
) -> Task:
    """Make a task from names or objects.

    Args:
        model: A shipped model (``digits``), a network by name with new weights (see
            :func:`prunegym.models.build`), a path to a model file (``.safetensors``), your CNN, a
            :class:`MaskedCNN` or a :class:`DynamicCNN`. Images of a folder get the size, crop and normalisation that
            the network's library states.
        dataset: A name or path, a :class:`Dataset` (its own split is used), a dict with a Dataset for each split, or
            None for the one that the model was made for, else ``digits``.
        split: ``train``, ``validation`` or ``test``.
        reward: See :func:`~prunegym.envs.rewards.reward.resolve_reward`.
        accuracy: The accuracy term of a named reward, see :func:`~prunegym.envs.rewards.accuracy.resolve_accuracy`.
        penalty: lambda, a range ``(low, high)`` of it, or None for the value at which all channels on cost 0.5.
            Rewards ``l0`` and ``l0_weights`` multiply it by a count, the others by a share.
        observation: ``features`` or ``image`` (features and the image).
        layerwise: Whether a step decides one gate; otherwise one step decides all.
        device: Where the CNN runs. A model on another device is copied.
        features: What an agent observes. By default a DynamicCNN's own features, if it makes the same decisions;
            otherwise the standard features, standardised on the training split.
        augment: Shift and mirror images at random, as in training, or only mirror them (``flip``).
        images: Use a random subset of this many images, drawn with a fixed seed; indices count within it.
        latency_table: The time that masks take, or the file that ``prunegym latency`` wrote; for the reward
            ``latency``.
        execution: ``kernel``: the compiled kernel skips masked channels. ``masked``: they are computed, then set to 0.
            ``auto``: the kernel where it can run the CNN. Results are equal up to rounding.

    Returns:
        The task.

    Raises:
        UnknownNameError: For an unknown model, data set, split, reward, accuracy term or observation.
        InvalidInputError: If two arguments do not fit each other, or a number is out of range.

    Warns:
        PenaltyWarning: If lambda is the price of a channel or weight, and all of them cost over ten right answers.
    """
    choice("execution", execution, STEPWISE)
    choice("observation", observation, OBSERVATIONS)
    found = resolve_model(model, lambda info: _datasets(dataset, split, info, model))
    chosen, training = found.data["evaluated"], found.data.get("train")
    if not found.masked.frozen:
        raise InvalidInputError("The MaskedCNN is not frozen. Call masked.freeze() first.")
    where = check_device(device)
    # The user's model stays on its device; a copy is moved.
    masked = found.masked if found.masked.device.type == where.type else copy.deepcopy(found.masked).to(where)
    chosen = answered(chosen, masked)
    resolved = resolve_reward(reward, accuracy, masked, latency_table).on(chosen)
    _check_output(masked, chosen, resolved)
    if features is None and found.policy is not None and found.policy.features.config["layerwise"] == layerwise:
        features = found.policy.features
    task = Task(
        masked=masked,
        dataset=_sample(chosen, images).augmenting(augment),
        features=_features(features, masked, layerwise, training, where),
        reward=resolved,
        penalty=resolved.default_penalty if penalty is None else check_penalty(penalty),
        observation=observation,
        layerwise=layerwise,
        device=where,
        augment=augment,
        execution=execution,
    )
    task.warn_if_too_expensive()
    return task


def _datasets(
    dataset: str | Dataset | Mapping[Split, Dataset] | None, split: str, info: CNNInfo | None, model: Model
) -> dict[str, Dataset]:
    """Return the split of the episodes as ``evaluated``, and the training split, if there is one."""
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if isinstance(dataset, Dataset):
        return {"evaluated": dataset} | ({"train": dataset} if dataset.split == "train" else {})
    if isinstance(dataset, Mapping):
        choice("split of the given data sets", split, dataset)
        for key, one in dataset.items():
            check_dataset(one, f"The data set for {key!r}")
        return {"evaluated": dataset[split]} | ({"train": dataset["train"]} if "train" in dataset else {})
    if dataset is not None and not isinstance(dataset, str | Path):
        check_dataset(dataset)
    if info is None:  # a fresh network gets the data set that needs no files
        name = "digits" if dataset is None else str(dataset)
        load = functools.partial(load_images, str(model)) if isinstance(model, str | Path) else load_dataset
        return {"train": load(name, "train"), "evaluated": load(name, split)}
    return {"train": load_for(info, dataset, "train"), "evaluated": load_for(info, dataset, split)}


def _check_output(masked: MaskedCNN, dataset: Dataset, reward: Reward) -> None:
    function = reward.function
    if isinstance(function, CostReward) and function.accuracy in (*OF_CLASSES, metric):
        own = ", or pass your own function as accuracy=, from an Outcome to (batch,) numbers"
        check_output(dataset, masked.output_shape, otherwise=own)


def _features(
    given: MaskFeatures | None, masked: MaskedCNN, layerwise: bool, training: Dataset | None, device: torch.device
) -> MaskFeatures:
    if given is None:
        if training is None:
            raise InvalidInputError(
                "The data set is one split without its training images, on which features are standardised. Pass the "
                "dict of all splits (with split=), or the features of the task that the agent trained on (features=)."
            )
        return MaskFeatures(masked, layerwise).to(device).calibrate(masked, training)
    if not isinstance(given, MaskFeatures):
        raise InvalidInputError(f"features is a {type(given).__name__}; MaskFeatures of the model are needed, or None.")
    if given.decisions != decisions_of(masked, layerwise):
        raise InvalidInputError(
            f"The features are for {len(given.decisions)} decisions of widths "
            f"{[decision.width for decision in given.decisions]}, which are not those of this model with "
            f"layerwise={layerwise}. Make them with MaskFeatures(masked, layerwise={layerwise})."
        )
    there = given.get_buffer("mean0").device
    return given if there.type == device.type else copy.deepcopy(given).to(device)


def _sample(dataset: Dataset, images: int | None) -> Dataset:
    if images is None:
        return dataset
    hint = f"Data set {dataset.name!r}, split {dataset.split!r}, has {len(dataset)} images."
    return dataset.sample(whole_number("images", images, high=len(dataset), hint=hint))
