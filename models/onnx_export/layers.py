"""Layers of torch as the arrays and attributes that ONNX wants."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models.masking.graph import Step
from prunegym.models.onnx_export.builder import Array


def numpy_of(tensor: Tensor) -> Array:
    """Return a float tensor as a float32 array on the CPU."""
    array: Array = tensor.detach().cpu().float().numpy()
    return array


def geometry(step: Step, conv: nn.Conv2d) -> dict[str, Any]:
    """Return the attributes of an ONNX convolution.

    Raises:
        InvalidInputError: If it pads with something else than zeros.
    """
    if conv.padding_mode != "zeros":
        raise InvalidInputError(
            f"Convolution {step.target!r} pads with padding_mode={conv.padding_mode!r}; the ONNX export knows 'zeros'."
        )
    if isinstance(conv.padding, str):
        spans = zip(conv.dilation, conv.kernel_size, strict=True)
        totals = [dilation * (kernel - 1) if conv.padding == "same" else 0 for dilation, kernel in spans]
        pads = [total // 2 for total in totals] + [total - total // 2 for total in totals]
    else:
        pads = [int(side) for side in conv.padding] * 2
    return {
        "kernel_shape": list(conv.kernel_size), "strides": list(conv.stride), "pads": pads,
        "dilations": list(conv.dilation), "group": conv.groups,
    }  # fmt: skip
