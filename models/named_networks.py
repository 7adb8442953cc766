"""Networks by name, with weights of a file, for the images that their library made them for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset
from prunegym.models.data.dataset_registry import SOURCES, load_dataset
from prunegym.models.data.normalisation import Normalisation
from prunegym.models.data.pretrained import pretrained_transform
from prunegym.models.data.transform import Transform
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.storage.cnn_info import CNNInfo
from prunegym.models.storage.misfit import misfit, without_head
from prunegym.models.storage.model_file import Bundle
from prunegym.models.storage.weights import load_tensors, read_weights
from prunegym.models.zoo.libraries import RENORMALISE, Statement, library_of, statement
from prunegym.models.zoo.network_registry import ZOO, build, is_code, network_constructor

BLANK = Normalisation((0.5,) * 3, (0.5,) * 3)
IN_TRAINING = ("aux1.", "aux2.", "AuxLogits.")
"""Layers of torchvision's public weights that only training uses."""


def open_network(
    name: str,
    dataset: str | None = None,
    weights: Path | str | None = None,
    gates: str = "auto",
    **transform: Any,
) -> Bundle:
    """Build a network by name; see :func:`prunegym.models.catalog.open_model`.

    It has as many outputs as the data set has classes. With weights that have another number, it has as many as these.
    """
    network_constructor(name)
    data = None if dataset is None else load_images(name, dataset, "train", **transform)
    tensors = None if weights is None else weights_for(name, weights)
    for info in _descriptions(name, data, transform):
        network = info.build()
        wrong = None if tensors is None else misfit(network.state_dict(), tensors)
        if wrong is None and not (is_code(name) and _outputs(network, info.image_shape) != info.num_classes):
            break
    if tensors is not None:
        load_tensors(network, tensors, str(weights))
    return masked_bundle(info, network, gates)


def masked_bundle(info: CNNInfo, network: nn.Module, gates: str = "auto") -> Bundle:
    """Return a network with its gates: ``auto``, ``all``, or names with commas between them."""
    wanted = gates if gates in ("auto", "all") else [name.strip() for name in gates.split(",")]
    return Bundle(masked=MaskedCNN(network, info.example(), gates=wanted), info=info)


def load_images(name: str, dataset: str, split: str, **transform: Any) -> Dataset:
    """Load a split for a network by name: with the size, crop and normalisation of its library, if it has them.

    Args:
        name: The network's name.
        dataset: The data set's name or path.
        split: ``train``, ``validation`` or ``test``.
        transform: Options of :func:`load_dataset` that are not None count instead of the library's.
    """
    stated = stated_by(name)
    if stated is None or stated.source is None or dataset in SOURCES or dataset.endswith(".npz"):
        return load_dataset(dataset, split, **transform)
    own, normalisation = _chosen(stated, transform)
    found = load_dataset(dataset, split, channels=len(normalisation.mean), **dataclasses.asdict(own))
    return dataclasses.replace(found, normalisation=normalisation)


def stated_by(name: str) -> Statement | None:
    """Return what is said of a network's images: by its library, or by ``pretrained_cfg`` of your function.

    That is a dict as timm's: ``input_size``, ``mean``, ``std``, ``crop_pct``, ``interpolation``, and ``classes``.
    """
    if library_of(name) is not None:
        return statement(name)
    config = getattr(network_constructor(name), "pretrained_cfg", None) if is_code(name) else None
    return None if config is None else Statement(config, tuple(config.get("classes", ())))


def weights_for(name: str, path: Path | str) -> dict[str, Tensor]:
    """Read a file of weights for a network, without the layers that only training uses."""
    tensors = read_weights(Path(path))
    if library_of(name) == "torchvision" and name.partition(":")[2] in RENORMALISE:
        return {key: tensor for key, tensor in tensors.items() if not key.startswith(IN_TRAINING)}
    return tensors


def begin_with(network: nn.Module, name: str, path: Path | str, outputs: int) -> list[str]:
    """Load weights into a network that is trained next; a last layer with another number of outputs stays new.

    Args:
        network: Changed in place.
        name: Its name.
        path: A file of weights.
        outputs: How many outputs the network has.

    Returns:
        Names of the parameters that stay new.

    Raises:
        MissingDataError: If there is no such file.
        InvalidInputError: If the weights do not fit otherwise.
    """
    own, given = network.state_dict(), weights_for(name, path)
    tensors = without_head(own, given, outputs)
    new = [key for key in own if key in given and key not in tensors]
    load_tensors(network, {**{key: own[key] for key in new}, **tensors}, str(path))
    return new


def _descriptions(name: str, data: Dataset | None, transform: dict[str, Any]) -> Iterator[CNNInfo]:
    """Yield the descriptions that a network may have: for the data set's classes, and for its own."""
    if data is not None and not data.unlabelled:
        yield CNNInfo.of(name, data)
    if name in ZOO and not is_code(name):
        size = Transform.of(**transform) or Transform((32, 32))
        yield CNNInfo(name, 10, (3, *size.image_size), BLANK, tuple("0123456789"), "none")
        return
    stated = stated_by(name)
    if data is not None:
        info = CNNInfo.of(name, data, outputs=data.outputs or 1)
    else:
        made, norm = Transform.of(**transform), BLANK
        if stated is not None and stated.source is not None:
            made, norm = _chosen(stated, transform)
        height, width = (32, 32) if made is None else made.image_size
        info = CNNInfo(name, 1, (len(norm.mean), height, width), norm, (), "none", transform=made)
    shape = info.image_shape
    outputs = _outputs(build(name, None, shape[0], shape[1:]), shape)
    classes = stated.classes if stated is not None else ()
    if len(classes) != outputs:
        classes = tuple(map(str, range(outputs)))
    yield dataclasses.replace(info, num_classes=outputs, classes=classes)


@torch.inference_mode()
def _outputs(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Return how many outputs a network has."""
    training = network.training
    found = network.eval()(torch.zeros(1, *shape))
    network.train(training)
    if not isinstance(found, Tensor) or found.ndim < 2:
        raise InvalidInputError(
            f"{type(network).__name__} returns a {type(found).__name__}; one tensor (batch, outputs, ...) is needed. "
            "In Python, choose one with MaskedCNN(network, example, output=...)."
        )
    return found.shape[1]


def _chosen(stated: Statement, transform: dict[str, Any]) -> tuple[Transform, Normalisation]:
    """Return the transform of options, else the library's own, and the library's normalisation."""
    own, normalisation = pretrained_transform(stated.source)
    given = {key: value for key, value in transform.items() if value is not None}
    made = Transform.of(**{"interpolation": own.interpolation, **given}) if given else own
    return made or own, normalisation
