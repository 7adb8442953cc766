"""Masked channels are zero, even if their values are infinite or NaN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Masked(torch.autograd.Function):
    """value * mask, but exactly 0 where the mask is 0, although 0 * inf is NaN. Gradients are those of the product."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, mask: Tensor) -> Tensor:
        return (value * mask).masked_fill_(mask == 0, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        value, mask = ctx.saved_tensors
        # The bit's own gradient stays the value where the bit is 0: straight-through training needs it.
        return gradient * mask, (gradient * value).sum_to_size(mask.shape)


def mask_channels(value: Tensor, mask: Tensor) -> Tensor:
    """Multiply values with their mask bits; a bit of 0 gives 0 even for infinite values and NaN.

    Args:
        value: A tensor of any shape.
        mask: Any numbers of the same type, in a shape that expands to the value's, e.g. (batch, channels, 1, 1).

    Returns:
        The product, with the value's shape and type, differentiable in both.
    """
    masked: Tensor = _Masked.apply(value, mask)  # type: ignore[no-untyped-call]
    return masked
