"""What does not fit between a network's weights and those of a file, in words."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from torch import Tensor

LISTED = 6
"""Names of each kind that a message has."""


def misfit(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """Return what does not fit, each name with the nearest one on the other side; None if everything fits.

    Args:
        own: The network's tensors by name.
        given: The file's.

    Example:
        >>> import torch
        >>> one, other = torch.zeros(2), torch.zeros(3)
        >>> misfit({"fc.weight": one, "fc.bias": one}, {"fc.weight": other, "fc.bias": one})
        "of other shapes 'fc.weight' (3,), here (2,)"
    """
    # Checkpoints from before torch 0.4.1 have no num_batches_tracked; eval mode never reads it.
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    extra = [name for name in given if name not in own]
    wrong = [name for name in own if name in given and own[name].shape != given[name].shape]
    parts = [
        _listed("missing", [_with_nearest(name, own[name], given, extra, "nearest in the file: ") for name in missing]),
        _listed("not in the network", [_with_nearest(name, given[name], own, missing, "nearest: ") for name in extra]),
        _listed("of other shapes", [f"{name!r} {_shape(given[name])}, here {_shape(own[name])}" for name in wrong]),
    ]
    return "; ".join(part for part in parts if part) or None


def without_head(own: Mapping[str, Tensor], given: Mapping[str, Tensor], outputs: int) -> dict[str, Tensor]:
    """Return a file's tensors without those of a last layer that has another number of outputs.

    Args:
        own: The network's tensors by name.
        given: The file's.
        outputs: How many outputs the network has.
    """

    def is_head(name: str, tensor: Tensor) -> bool:
        shape = own[name].shape if name in own else tensor.shape
        return shape[:1] == (outputs,) and tensor.shape[:1] != shape[:1] and tensor.shape[1:] == shape[1:]

    return {name: tensor for name, tensor in given.items() if not is_head(name, tensor)}


def _listed(kind: str, entries: Sequence[str]) -> str:
    more = f" and {len(entries) - LISTED} more" if len(entries) > LISTED else ""
    return f"{kind} {', '.join(entries[:LISTED])}{more}" if entries else ""


def _with_nearest(name: str, tensor: Tensor, others: Mapping[str, Tensor], unmatched: Sequence[str], label: str) -> str:
    """Return a name, and the most similar one of the other side that has the same shape."""
    same = [other for other in unmatched if others[other].shape == tensor.shape]
    near = difflib.get_close_matches(name, same, n=1, cutoff=0.0)
    return f"{name!r} ({label}{near[0]!r})" if near else repr(name)


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
