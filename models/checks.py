"""Checks that networks, data sets and devices fit together, for use before long computations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.masking.recording.tracing import check_module


def check_dataset(dataset: object, name: str = "The data set") -> None:
    """Raise InvalidInputError unless this is a Dataset; ``name`` is what it is called in the message."""
    if not isinstance(dataset, Dataset):
        given = repr(dataset) if isinstance(dataset, str) else f"a {type(dataset).__name__}"
        raise InvalidInputError(f"{name} is {given}; a Dataset is needed. {Dataset.HINT}")


def check_images(dataset: Dataset, shape: tuple[int, ...]) -> None:
    """Raise InvalidInputError unless a data set's images have the given shape (channels, height, width)."""
    check_dataset(dataset)
    if dataset.image_shape != shape:
        raise InvalidInputError(
            f"The model takes images of shape {shape}, those of data set {dataset.name!r} have "
            f"{dataset.image_shape} (channels, height, width). Choose a data set and a model that fit together."
        )


def check_output(dataset: Dataset, shape: tuple[int, ...], otherwise: str = "") -> None:
    """Check that a network's output fits a data set's targets, and that loss and metric can be computed from it.

    Args:
        dataset: The data set with the targets.
        shape: Shape of the network's output for an image.
        otherwise: Another way to fix it, for the message.

    Raises:
        InvalidInputError: If there are too few numbers, or the output has another shape.
    """
    objective, count = dataset.objective, dataset.outputs
    if dataset.unlabelled:
        return
    if objective.kind == "classes" and (len(shape) != 1 or shape[0] < count):
        raise InvalidInputError(
            f"The model's output per image has shape {shape}, but data set {dataset.name!r} has {len(dataset.classes)} "
            f"classes, and one number per class is needed. Use a model with that many outputs{otherwise}."
        )
    needed = {"labels": (count,), "numbers": (count,), "outputs": tuple(dataset.labels.shape[1:])}.get(objective.kind)
    if objective.kind == "maps":
        needed = (max(count, *shape[:1]), *dataset.labels.shape[1:])
    if needed is not None and shape != needed:
        raise InvalidInputError(
            f"The model's output per image has shape {shape}. Targets of data set {dataset.name!r} have shape "
            f"{tuple(dataset.labels.shape[1:])}, so {needed} is needed. Use a model with this output{otherwise}."
        )
    objective.check(shape, dataset.labels, "The model")


def check_masked(masked: MaskedCNN, dataset: Dataset) -> None:
    """Raise InvalidInputError unless a data set's images and classes fit a masked CNN."""
    check_images(dataset, masked.image_shape)
    check_output(dataset, masked.output_shape)


def check_dense(dense: nn.Module, masked: MaskedCNN, dataset: Dataset) -> None:
    """Raise InvalidInputError unless the original network takes a masked CNN's images, and has its output's shape."""
    shape = output_shape(dense, dataset, "dense")
    if shape != masked.output_shape:
        raise InvalidInputError(
            f"dense is a {type(dense).__name__} whose output per image has shape {shape}, but the model's has "
            f"{masked.output_shape}. Give the network that the model was made from, trained on the same classes."
        )


def output_shape(network: nn.Module, dataset: Dataset, argument: str = "network") -> tuple[int, ...]:
    """Return the shape of a network's output for an image, found by running one in eval mode.

    Args:
        network: Takes normalised images.
        dataset: Source of the image.
        argument: Name of the network's argument, for the message.

    Raises:
        InvalidInputError: If it is not a network, cannot run the image, or does not return a tensor.
    """
    check_dataset(dataset)
    check_module(network, argument)
    what = f"{argument} is a {type(network).__name__}"
    image = f"a normalised image of data set {dataset.name!r}, {dataset.image_shape} (channels, height, width)"
    hint = "Choose a data set and a network that fit together."
    output = try_one(network, dataset.batch(torch.arange(1)).contiguous(), what, image, hint)
    if not isinstance(output, Tensor) or output.ndim == 0:
        raise InvalidInputError(
            f"{what}, which returns a {type(output).__name__}; a tensor (batch, classes) is needed. Wrap it in a "
            "module that returns the logits."
        )
    return tuple(output.shape[1:])


def layout_of(network: nn.Module, dataset: Dataset) -> torch.memory_format:
    """Return the memory layout in which a network can run images: channels last if possible, which is faster.

    A network that calls ``view`` on a map needs the contiguous layout.
    """
    try:
        run_one(network, dataset.batch(torch.arange(1)).contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


@torch.no_grad()
def run_one(network: nn.Module, image: Tensor) -> object:
    """Run an image (1, channels, height, width) in eval mode, then restore the network's mode."""
    device = next((parameter.device for parameter in network.parameters()), "cpu")
    was_training = network.training
    network.eval()
    try:
        return network(image.to(device))
    finally:
        network.train(was_training)


def try_one(network: nn.Module, image: Tensor, what: str, described: str, hint: str) -> object:
    """Run an image with :func:`run_one`.

    Args:
        network: The network.
        image: (1, channels, height, width).
        what: What the network is, for the message.
        described: What the image is.
        hint: How to fix it.

    Raises:
        InvalidInputError: If the network raises any error.
    """
    try:
        return run_one(network, image)
    except Exception as error:  # a network may raise any error
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise InvalidInputError(f"{what}, which cannot run {described}: {reason}. {hint}") from error


def check_device(name: str | torch.device) -> torch.device:
    """Return a torch device, after checking that it is available.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1`` and the like.

    Raises:
        InvalidInputError: If torch does not know the device, or this machine or this build of torch does not have it.

    Example:
        >>> check_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(f"device is {name!r}, which torch does not know. Give cpu, or cuda.") from error
    if device.type == "meta":
        raise InvalidInputError("device is 'meta', on which tensors have no values. Give cpu, or cuda.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidInputError(
            f"device is {name!r}, but torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here. "
            "Give cpu, or install a CUDA build of torch on a machine with a GPU."
        )
    return device
