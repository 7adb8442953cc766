"""Opens a model that is given as a name, a file or an object, and loads its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from prunegym.errors import InvalidInputError, MissingDataError, UnknownNameError
from prunegym.models.checks import check_images
from prunegym.models.data.dataset import Dataset
from prunegym.models.data.dataset_registry import SOURCES, load_dataset, path_of
from prunegym.models.data.transform import Transform
from prunegym.models.dynamic_cnn import SHIPPED, DynamicCNN, shipped_path
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.named_networks import masked_bundle, open_network
from prunegym.models.storage.cnn_info import CNNInfo
from prunegym.models.storage.model_file import Bundle, read_model
from prunegym.models.storage.run_folder import command_line
from prunegym.models.training.cnn_training import accuracy
from prunegym.models.zoo.network_registry import FORMS, ZOO, is_code, is_network, network_constructor
from prunegym.validation import whole_number

Model: TypeAlias = str | Path | nn.Module | Bundle
"""The name of a shipped model or of a network, a model file, a CNN, a masked or dynamic CNN, or a bundle."""


def resolve_model(model: object, data: Callable[[CNNInfo | None], Mapping[str, Dataset]]) -> Bundle:
    """Return the model for an argument, with its data sets normalised and labelled as it expects.

    Args:
        model: See :data:`Model`.
        data: Returns data sets by their part, given the model's description, or None for a network that is not masked
            yet. Such a network needs the part ``evaluated``: it is built, or traced, for those images.

    Raises:
        UnknownNameError: If there is no model with this name.
        MissingDataError: If there is no such file.
        InvalidInputError: If ``model`` is of another type, or images have another shape than the model needs.
    """
    known = _known(model)
    parts = data(None if known is None else known.info)
    if known is None:
        known = _masked(model, parts["evaluated"])
    for part in parts.values():
        check_images(part, known.masked.image_shape)
    return dataclasses.replace(known, data={name: known.info.adapt(part) for name, part in parts.items()})


def _known(model: object) -> Bundle | None:
    """Return a model that has a description; None for a network without one."""
    if isinstance(model, Bundle):
        return model
    if isinstance(model, DynamicCNN):
        return Bundle(masked=model.masked, info=model.info, policy=model.policy)
    if isinstance(model, str | Path):
        return None if is_network(str(model)) and not Path(model).is_file() else open_model(str(model))
    if isinstance(model, nn.Module):
        return None
    raise InvalidInputError(
        f"The model is a {type(model).__name__}; a name, a path to a model file, a torch module, a MaskedCNN, a "
        "DynamicCNN or a Bundle is needed."
    )


def _masked(model: object, images: Dataset) -> Bundle:
    if isinstance(model, str | Path):
        network_constructor(str(model))
        info = CNNInfo.of(str(model), images)
        return masked_bundle(info, info.build())
    masked = model if isinstance(model, MaskedCNN) else MaskedCNN(cast(nn.Module, model), images.batch(torch.arange(1)))
    return Bundle(masked=masked, info=CNNInfo.of(type(masked.network).__name__, images))


def open_model(
    name: str,
    dataset: str | None = None,
    *,
    weights: Path | str | None = None,
    gates: str | None = None,
    **transform: Any,
) -> Bundle:
    """Open a model by name.

    Args:
        name: Name of a shipped model, a model file or a network, see :func:`prunegym.models.build`.
        dataset: The data set to build a network for; None builds it for the images and classes of its library, or for
            ten classes of 3x32x32 images.
        weights: A file of weights for a network by name.
        gates: ``auto``, ``all`` or names of layers with commas between them, for a model without a policy.
        transform: Options of :func:`load_dataset` for images of other sizes, for a network by name.

    Raises:
        UnknownNameError: If it is none of these.
        InvalidInputError: If the weights do not fit, or are given for a model file.
    """
    if is_network(name) and not Path(name).is_file():
        return open_network(name, dataset, weights, gates or "auto", **transform)
    if weights is not None:
        raise InvalidInputError(f"--weights is for a network by name; {name} has its own. Leave it out.")
    if name in SHIPPED:
        return read_model(shipped_path(name), gates=gates)
    if name.endswith(".safetensors") or Path(name).is_file():
        return read_model(name, gates=gates)
    raise UnknownNameError("model", name, [*SHIPPED, *ZOO, *FORMS, "path/to/model.safetensors"])


def open_trained(name: str, *args: Any, weights: Path | str | None = None, **options: Any) -> Bundle:
    """Open a trained model by name; arguments as of :func:`open_model`.

    Raises:
        InvalidInputError: For a network without weights. Your own function is expected to load its own weights.
    """
    if is_network(name) and not is_code(name) and weights is None and not Path(name).is_file():
        raise InvalidInputError(
            f"{name!r} is a network with random weights. Train it first: prunegym train-cnn {name} --out FOLDER, then "
            "give FOLDER/cnn.safetensors. Or give a file of its weights: --weights FILE."
        )
    return open_model(name, *args, weights=weights, **options)


def with_options(
    model: Bundle,
    dataset: str | None = None,
    *,
    loss: str | None = None,
    metric: str | None = None,
    **transform: Any,
) -> Bundle:
    """Return a model for other images, loss and metric; options of None stay as the model has them.

    Args:
        model: The model.
        dataset: A data set's name or path, which the model keeps as its own.
        loss: A loss's name, or ``module:function``.
        metric: The same of a metric.
        transform: Options of :func:`load_dataset` for images of other sizes.

    Raises:
        UnknownNameError: For an unknown data set, loss or metric.
        MissingDataError: If there is nothing at a path.
        InvalidInputError: If sizes do not fit each other.
    """
    changes: dict[str, Any] = {}
    judged: dict[str, Any] = {name: value for name, value in (("loss", loss), ("metric", metric)) if value is not None}
    if judged:
        changes["objective"] = dataclasses.replace(model.info.objective, **judged)
    made = Transform.of(**transform)
    if made is not None:
        changes["transform"] = made
    path = None if dataset is None else path_of(dataset)
    if path is not None:
        changes["data_path"] = path
    return dataclasses.replace(model, info=dataclasses.replace(model.info, **changes))


def load_for(info: CNNInfo, name: str | Path | None, split: str) -> Dataset:
    """Load a split of a model's own data set, or of another one, with the model's transform.

    Args:
        info: The model's description.
        name: The data set's name or path; None means the model's own data set, at its stored path.
        split: ``train``, ``validation`` or ``test``.

    Raises:
        MissingDataError: If the model's own data set is not at its stored path.
    """
    where = str((info.data_path or info.dataset) if name is None else name)
    has_sizes = where not in SOURCES and not where.endswith(".npz")
    options: dict[str, Any] = {"channels": info.image_shape[0]} if info.image_shape[0] in (1, 3) else {}
    if info.transform is not None and has_sizes:
        options |= dataclasses.asdict(info.transform)
    try:
        return load_dataset(where, split, **options)
    except MissingDataError as error:
        if name is not None or info.data_path is None:
            raise
        raise MissingDataError(
            f"The model's data set {info.dataset!r} was at {info.data_path}, but is not there now. Give its new path "
            "(--dataset PATH, or dataset= in Python)."
        ) from error


def open_split(
    info: CNNInfo, name: str | None, split: str, images: int | None = None, span: str | None = None
) -> Dataset:
    """Load a split for a model, normalised as the model was trained.

    Args:
        info: The model's description.
        name: The data set's name or path; None means the model's own data set.
        split: ``train``, ``validation`` or ``test``.
        images: Use a random subset of this many images, drawn with a fixed seed.
        span: Use only this part of the images, see :meth:`Dataset.part`.

    Raises:
        InvalidInputError: If the split has fewer images, if they do not fit the model, or if the model does not have
            one of the classes.
    """
    data = info.adapt(load_for(info, name, split))
    if span is not None:
        data = data.part(span)
    if images is None:
        return data
    return data.sample(whole_number("--images", images, 1, len(data), f"{data.name}/{split} has {len(data)} images."))


def accuracies(network: torch.nn.Module, info: CNNInfo, dataset: str | None) -> dict[Dataset, float]:
    """Return a network's accuracy (0 to 1) on the validation and test split, if they have targets."""
    splits = [open_split(info, dataset, split) for split in ("validation", "test")]
    return {data: accuracy(network, data) for data in splits if not data.unlabelled}


def with_history(info: CNNInfo, step: str, seed: int, hide_path: bool = False, **facts: Any) -> CNNInfo:
    """Add a step to a model's history, and facts to its metadata; ``hide_path`` removes the path of its data set."""
    info = dataclasses.replace(info, data_path=None) if hide_path else info
    entry = {"step": step, "command": command_line(), "seed": seed}
    history = [*info.metadata.get("history", []), entry]
    return dataclasses.replace(info, metadata={**info.metadata, **facts, "history": history})
