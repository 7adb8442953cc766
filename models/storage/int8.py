"""Weights stored as int8, which makes a model file about four times smaller. Computation stays in float32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError

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
        tensors: Of :func:`quantized_state`, possibly with a prefix.
        source: Where they come from, for the message.

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
