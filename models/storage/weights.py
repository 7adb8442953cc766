"""Weights on disk, as float32 or int8, and hashes of them. Loading never executes code."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from prunegym.errors import InvalidInputError, MissingDataError
from prunegym.models.data.dataset import CLASSES, Dataset
from prunegym.models.data.files.bounded_files import check_regular
from prunegym.models.data.sources.lazy_images import LazyImages
from prunegym.models.storage.misfit import misfit
from prunegym.validation import typed


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file to write, then rename it to ``path``.

    A crash or a failed write leaves the old file unchanged. A failed write leaves no temporary file.

    Raises:
        OSError: If it cannot be written; the error names ``path``.
    """
    # The name is different for each process, so that two processes do not write into the same file.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add this path to errors of the file system, because the error for a full disk has none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not str(error.filename or path).startswith(str(path)):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error


def save_text(path: Path, text: str) -> None:
    """Write a text, such as JSON; a crash leaves no incomplete file."""
    with whole_file(path) as partial:
        partial.write_text(text)


def _torch_file(path: Path) -> dict[Any, Any]:
    """Read a torch file of plain tensors, without executing code; raises the errors of :func:`read_weights`."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file raises almost anything: fuzzing gave ten types, even AssertionError
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InvalidInputError(
            f"{path} is not a torch file of plain tensors ({reason}). "
            "Files that could execute code are refused: save only the state dict and try again."
        ) from error
    if not isinstance(state, dict):
        raise InvalidInputError(f"{path} has a {type(state).__name__}; a dict of tensors is needed.")
    return state


@typed
def save_weights(network: nn.Module, path: Path | str) -> None:
    """Write a network's parameters and buffers as safetensors."""
    write_tensors(Path(path), network.state_dict())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors; a crash leaves no incomplete file."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with whole_file(path) as partial:
        # Bytes, not save_file, which ignores the umask and lets only the owner read the file.
        partial.write_bytes(safetensors.torch.save(plain, metadata))


_NESTED = ("state_dict", "model", "model_state_dict")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a torch file of plain tensors.

    Public checkpoints often store the state dict under ``state_dict`` or ``model``, next to the epoch, and prefix its
    names with ``module.`` (torch's ``DataParallel``). The other entries are dropped, and the prefix is removed.
    Everything is loaded with ``weights_only=True``, so no code is executed.

    Args:
        path: ``.safetensors`` or a torch file (``.pt``, ``.pth``, ``.th``).

    Returns:
        Tensors by name.

    Raises:
        MissingDataError: If there is no such file.
        InvalidInputError: If the file is damaged or has no state dict.
    """
    if not path.exists():
        raise MissingDataError(f"There is no checkpoint {path}. Check the path.")
    check_regular(path, "file of weights")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise InvalidInputError(f"{path} is not a safetensors file ({error}). It may be truncated.") from error
    state = _torch_file(path)
    state = next((inner for key in _NESTED if isinstance(inner := state.get(key), dict)), state)
    tensors = {
        name.removeprefix("module."): value
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise InvalidInputError(f"{path} has no tensors; its keys are {sorted(map(str, state))[:8]}.")
    return tensors


@typed
def load_weights(network: nn.Module, path: Path | str) -> nn.Module:
    """Load weights of :func:`read_weights` into a network; names and shapes must agree.

    Args:
        network: Changed in place.
        path: See :func:`read_weights`.

    Returns:
        The network.

    Raises:
        MissingDataError: If there is no such file.
        InvalidInputError: If names or shapes differ, or a weight is NaN or infinite.
    """
    load_tensors(network, read_weights(Path(path)), str(path))
    return network


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Put tensors into a network; names and shapes must agree.

    Args:
        network: Changed in place.
        tensors: Tensors by name, as in its state dict.
        source: Their source, for the message.

    Raises:
        InvalidInputError: If names, shapes or kinds of numbers differ, or a weight is NaN or infinite.
    """
    own = network.state_dict()
    wrong = misfit(own, tensors)
    if wrong is not None:
        raise InvalidInputError(
            f"{source} does not fit {type(network).__name__}: {wrong}. Build the network with the arguments of the "
            "checkpoint's network."
        )
    for name, tensor in tensors.items():
        wrong_with = _wrong_with(name, tensor, own[name])
        if wrong_with is not None:
            raise InvalidInputError(f"{source}: {name!r} {wrong_with}. Give weights like the network's own.")
    network.load_state_dict(dict(tensors), strict=False)


def _wrong_with(name: str, tensor: Tensor, own: Tensor) -> str | None:
    """Return why a tensor is no weight for a network, or None."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return f"is not a plain tensor ({tensor.layout}, {tensor.dtype}, {tensor.device})"
    if (tensor.is_floating_point(), tensor.is_complex()) != (own.is_floating_point(), own.is_complex()):
        return f"has numbers of type {tensor.dtype}, not {own.dtype}"
    if not torch.isfinite(tensor).all():
        return "has NaN or infinite values"
    if name.endswith("running_var") and (tensor < 0).any():
        return "has negative variances"
    return None


def fingerprint_of(thing: nn.Module | Dataset) -> str:
    """Return a hash of a module's parameters and buffers, or of a data set's images, targets, normalisation and metric.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> fingerprint_of(layer) == fingerprint_of(layer), len(fingerprint_of(layer))
        (True, 16)
    """
    if isinstance(thing, nn.Module):
        return hash_of(thing.state_dict().items())
    mean_std = torch.tensor([thing.normalisation.mean, thing.normalisation.std])
    name, images = f"{thing.name}/{thing.split}", thing.images
    if isinstance(images, LazyImages):  # not all of them are read for this
        name, marks = f"{name} {tuple(images.shape)} {thing.transform}", images.marks()
    else:
        marks = images
    if thing.objective != CLASSES:
        name += f" {thing.objective.fingerprint()}"
    return hash_of([(name, marks), ("labels", thing.labels), ("norm", mean_std)])


def check_inputs(path: Path, stored: Mapping[str, str] | None, now: Mapping[str, str]) -> None:
    """Raise InvalidInputError if the hashes of a checkpoint's inputs differ. None for ``stored`` skips the check."""
    other = [name for name, mark in now.items() if stored is not None and stored.get(name) != mark]
    if other:
        raise InvalidInputError(
            f"{path} has other inputs ({', '.join(other)}). Give the inputs of that run, or another file."
        )


def hash_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of named tensors, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


INT8_MAX = 127
"""Symmetric, without -128: no zero point is needed, and zero stays exactly zero."""
SCALE = "_scale"
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to int8, with one scale for each output channel.

    Args:
        weight: (out, ...) float.

    Returns:
        (out, ...) int8 and the scales (out,) float32: weight = int8 * scale, to within half a scale.

    Example:
        >>> whole, scale = quantize(torch.tensor([[1.0, -0.5, 0.1], [0.0, 0.0, 0.0]]))
        >>> whole.tolist(), [round(value, 5) for value in scale.tolist()]
        ([[127, -64, 13], [0, 0, 0]], [0.00787, 1.0])
    """
    rows = weight.detach().float().flatten(1)
    largest = rows.abs().amax(1)
    # The largest absolute weight of a channel becomes 127; a channel of zeros gets scale 1.
    scale = torch.where(largest > 0, largest / INT8_MAX, torch.ones_like(largest))
    whole = (rows / scale[:, None]).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8)
    return whole.view(weight.shape), scale


def dequantize(whole: Tensor, scale: Tensor) -> Tensor:
    """Return the weight int8 * scale: int8 (out, ...) and scales (out,) -> (out, ...) float32."""
    return whole.float() * scale.view(-1, *[1] * (whole.ndim - 1))


def quantized_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state dict with the weights of its convolutions and linears as int8, and their scales.

    Biases, norms and statistics are small and stay float. Counters of batches, which eval mode never reads, are
    omitted.
    """
    layers = {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, _LAYERS)}
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if name in layers:
            state[name], state[name + SCALE] = quantize(tensor)
        elif not name.endswith("num_batches_tracked"):
            state[name] = tensor
    return state


def dequantized(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Turn int8 tensors back into float32, and drop their scales.

    Args:
        tensors: Tensors of :func:`quantized_state`, possibly with a prefix.
        source: Their source, for the message.

    Raises:
        InvalidInputError: If a scale is missing or has the wrong shape.
    """
    whole = {name for name, tensor in tensors.items() if tensor.dtype == torch.int8}
    for name in whole:
        scale = tensors.get(name + SCALE)
        if scale is None or scale.shape != tensors[name].shape[:1]:
            found = "none" if scale is None else f"scales of shape {tuple(scale.shape)}"
            raise InvalidInputError(
                f"{source}: int8 weight {name!r} of shape {tuple(tensors[name].shape)} has {found}; one scale for "
                "each output channel is needed. The file is damaged: write it again with prunegym quantize."
            )
    scales = {name + SCALE for name in whole}
    return {
        name: dequantize(tensor, tensors[name + SCALE]) if name in whole else tensor
        for name, tensor in tensors.items()
        if name not in scales
    }
