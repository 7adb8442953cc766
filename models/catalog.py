"""What "a model" may be: a name, a file or an object; and the data that go with it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.checks import check_images
from prunegym.models.data.dataset import Dataset, Normalisation
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.dynamic_cnn import SHIPPED, DynamicCNN, shipped_model
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.storage.model_file import Bundle, CNNInfo, read_model
from prunegym.models.storage.run_folder import command_line
from prunegym.models.training.cnn_training import accuracy
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
    there = masked.device
    return masked if there.type == device.type else copy.deepcopy(masked).to(device)


def open_model(name: str, dataset: Dataset | None = None) -> Bundle:
    """Return a model by the name of a shipped one, a model file or a network of the zoo.

    Args:
        name: What stands on the command line.
        dataset: What a network of the zoo is built for; None: ten classes of 3x32x32 images.

    Raises:
        UnknownNameError: If it is none of these.
    """
    if name in SHIPPED:
        model = shipped_model(name)
        return Bundle(masked=model.masked, info=model.info, policy=model.policy)
    if name in ZOO:
        info = CNNInfo.of(name, dataset) if dataset is not None else _blank(name)
        return Bundle(masked=MaskedCNN(info.build(), info.example()), info=info)
    if name.endswith(".safetensors") or Path(name).is_file():
        return read_model(name)
    raise UnknownNameError("model", name, [*SHIPPED, *ZOO, "path/to/model.safetensors"])


def open_trained(name: str) -> Bundle:
    """Return a model that has learnt something.

    Raises:
        InvalidInputError: For a network of the zoo, which has fresh weights.
    """
    if name in ZOO:
        raise InvalidInputError(
            f"{name!r} is a network with fresh weights. Train it first: prunegym train-cnn {name} --out FOLDER, then "
            "give FOLDER/cnn.safetensors."
        )
    return open_model(name)


def _blank(name: str) -> CNNInfo:
    normalisation = Normalisation((0.5,) * 3, (0.5,) * 3)
    return CNNInfo(name, 10, (3, 32, 32), normalisation, tuple(map(str, range(10))), "none")


def build_for(network: str, dataset: Dataset, seed: int) -> torch.nn.Module:
    """Build a network of the zoo with fresh weights for a data set's images and classes.

    Raises:
        InvalidInputError: If it cannot run them.
    """
    channels, height, width = dataset.image_shape
    made = build(network, len(dataset.classes), channels, height, seed).eval()
    try:
        made(dataset.batch(torch.arange(1)))
    except RuntimeError as error:
        raise InvalidInputError(
            f"{network} is for square images; those of {dataset.name!r} are {height}x{width}. Resize them, or take a "
            "network of your own in Python (prunegym.models.train)."
        ) from error
    return made.train()


def open_split(
    info: CNNInfo, name: str | None, split: str, images: int | None = None, span: str | None = None
) -> Dataset:
    """Load a split for a model: its own data set unless another is named, normalised as the model was trained.

    Args:
        info: Of the model.
        name: The data set's name or path.
        split: ``train``, ``validation`` or ``test``.
        images: So many only, drawn with a fixed seed.
        span: That part only, as :meth:`Dataset.part` has it.

    Raises:
        InvalidInputError: If there are fewer images than asked for, or the model takes others or does not know a class.
    """
    data = info.adapt(load_dataset(info.dataset if name is None else name, split))
    if span is not None:
        data = data.part(span)
    if images is None:
        return data
    if not 1 <= images <= len(data):
        raise InvalidInputError(f"--images is {images}; {data.name}/{split} has {len(data)} images. Give 1 to that.")
    return data.sample(images)


def accuracies(network: torch.nn.Module, info: CNNInfo, dataset: str | None) -> dict[Dataset, float]:
    """Return a network's accuracy (0 to 1) on the validation and test split."""
    splits = [open_split(info, dataset, split) for split in ("validation", "test")]
    return {data: accuracy(network, data) for data in splits}


def with_history(info: CNNInfo, step: str, seed: int, **facts: Any) -> CNNInfo:
    """Add to a model's metadata how this step made it, and any further facts."""
    entry = {"step": step, "command": command_line(), "seed": seed}
    history = [*info.metadata.get("history", []), entry]
    return dataclasses.replace(info, metadata={**info.metadata, **facts, "history": history})
