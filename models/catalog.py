"""What an argument ``model`` stands for: a name, a file or an object."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.checks import check_images
from prunegym.models.data.dataset import Dataset
from prunegym.models.dynamic_cnn import SHIPPED, DynamicCNN, shipped_model
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.storage.model_file import CNNInfo, read_model
from prunegym.models.zoo.network_registry import ZOO, build


class ModelSource(NamedTuple):
    """What an argument ``model`` stands for; a network of the zoo is built later, to fit the data set."""

    network: str | nn.Module
    features: MaskFeatures | None = None
    info: CNNInfo | None = None

    @property
    def dataset(self) -> str:
        """Name of the data set that the model was made for, else ``digits``."""
        return self.info.dataset if self.info is not None else "digits"

    def masked_for(self, dataset: Dataset, device: torch.device) -> MaskedCNN:
        """Return the frozen CNN for a data set's images, on a device.

        Raises:
            InvalidInputError: If a given MaskedCNN is not frozen, or the images have another shape than it takes.
        """
        masked = _placed(_masked(self.network, dataset), device)
        check_images(dataset, masked.image_shape)
        return masked


def read_model_argument(model: str | Path | nn.Module) -> ModelSource:
    """Find the network, and what comes with it.

    Args:
        model: As for :func:`~prunegym.envs.make_task`.

    Raises:
        UnknownNameError: If there is no such name.
        MissingDataError: If there is no such file.
        InvalidInputError: If it is none of these things.
    """
    if isinstance(model, str | Path):
        if str(model) in ZOO:
            return ModelSource(str(model))
        if str(model).endswith(".safetensors"):
            stored = read_model(model)
            return ModelSource(stored.masked, stored.policy.features if stored.policy else None, stored.info)
        if model not in SHIPPED:
            raise UnknownNameError("model", str(model), [*SHIPPED, *ZOO, "path/to/model.safetensors"])
        model = shipped_model(model)
    if isinstance(model, DynamicCNN):
        return ModelSource(model.masked, model.policy.features, model.info)
    if not isinstance(model, nn.Module):
        raise InvalidInputError(
            f"model is a {type(model).__name__}; a name, a path to a model file, a torch module, a MaskedCNN or a "
            "DynamicCNN is needed."
        )
    return ModelSource(model)


def _masked(network: str | nn.Module, dataset: Dataset) -> MaskedCNN:
    if isinstance(network, MaskedCNN):
        if not network.frozen:
            raise InvalidInputError("The MaskedCNN is not frozen, so its answers change. Call its freeze() first.")
        return network
    if isinstance(network, str):
        channels, height, _ = dataset.image_shape
        network = build(network, len(dataset.classes), channels, height)
    return MaskedCNN(network, torch.zeros(1, *dataset.image_shape))


def _placed(masked: MaskedCNN, device: torch.device) -> MaskedCNN:
    # A model of the user's is never moved away under their hands.
    there = next(masked.parameters()).device
    return masked if there.type == device.type else copy.deepcopy(masked).to(device)
