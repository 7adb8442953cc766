"""Fingerprints: hashes of what a result depends on (weights, gates and images)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import CLASSES, Dataset
from prunegym.models.data.sources.lazy_images import LazyImages


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
    """Raise InvalidInputError if a checkpoint's inputs had other hashes. None for ``stored`` skips the check."""
    other = [name for name, mark in now.items() if stored is not None and stored.get(name) != mark]
    if other:
        raise InvalidInputError(
            f"{path} was made from other inputs ({', '.join(other)}). Give the inputs of that run, or another file."
        )


def hash_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of named tensors, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
