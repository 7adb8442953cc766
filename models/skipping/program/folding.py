"""Batch norm folded into the convolution before it."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models.masking.graph import Attribute, Graph, Step, attribute_of
from prunegym.models.masking.operators import Kind


def constant(network: nn.Module, step: Step, name: str) -> Tensor | None:
    """Return an argument of a step that is a parameter or buffer, detached; None if it has none.

    Raises:
        InvalidInputError: If it is computed.
    """
    argument = step.arguments.get(name)
    if argument is None:
        return None
    if not isinstance(argument, Attribute):
        raise InvalidInputError(f"The {name} of step {step} is computed, not a parameter.")
    return attribute_of(network, argument.path).detach()


def scale_and_shift(network: nn.Module, norm: Step) -> tuple[Tensor, Tensor]:
    """Return a batch norm in eval mode as a factor and an offset for each channel, both (channels,) float64.

    Raises:
        InvalidInputError: If it has no running statistics.
    """
    mean, variance = (constant(network, norm, f"running_{name}") for name in ("mean", "var"))
    if mean is None or variance is None:
        raise InvalidInputError(
            f"Layer {norm.layer!r} is a batch norm without running statistics (track_running_stats=False): its output "
            "depends on the batch. Use a batch norm with running statistics."
        )
    weight, bias = constant(network, norm, "weight"), constant(network, norm, "bias")
    # (x - mean) / sqrt(var + eps) * weight + bias = x * scale + shift.
    scale = (variance.double() + norm.arguments["eps"]).rsqrt()
    scale = scale if weight is None else scale * weight.double()
    shift = -mean.double() * scale
    return scale, shift if bias is None else shift + bias.double()


def norm_behind(graph: Graph, step: Step, points: Collection[str]) -> Step | None:
    """Return the batch norm that can be folded into a convolution (it alone reads the output), None if there is none.

    Args:
        graph: The network's steps.
        step: The convolution.
        points: Steps whose output is masked; a norm after one of them cannot be folded.
    """
    users = [graph[name] for name in graph.users[step.name]]
    if step.kind not in (Kind.CONV, Kind.DEPTHWISE, Kind.GROUPED) or step.operation != "conv2d":
        return None
    if len(users) != 1 or step.name == graph.output or step.name in points:
        return None
    return users[0] if users[0].operation == "batch_norm" else None


def folded(network: nn.Module, conv: Step, norm: Step | None) -> tuple[Tensor, Tensor]:
    """Return the weight (out, in, kh, kw) and bias (out,) float32 of a convolution with the norm after it."""
    weight, bias = constant(network, conv, "weight"), constant(network, conv, "bias")
    assert weight is not None
    weight = weight.float()
    bias = torch.zeros(len(weight), device=weight.device) if bias is None else bias.float()
    if norm is None:
        return weight, bias
    scale, shift = (side.float() for side in scale_and_shift(network, norm))
    # (W x + b) * scale + shift = (W * scale) x + (b * scale + shift).
    return weight * scale[:, None, None, None], bias * scale + shift


def padding_of(conv: Step, size: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return the zeros that a convolution adds before and after rows and columns.

    Args:
        conv: The convolution.
        size: Height and width of its kernel.
    """
    padding = conv.arguments["padding"]
    if isinstance(padding, str):
        spans = zip(conv.arguments["dilation"], size, strict=True)
        totals = [dilation * (kernel - 1) if padding == "same" else 0 for dilation, kernel in spans]
        return [total // 2 for total in totals], [total - total // 2 for total in totals]
    both = list(padding) * (2 // len(padding))
    return both, both


def pair(value: list[int] | int) -> tuple[int, int]:
    """Return a size for height and width that may be given as one number."""
    first, last = (value, value) if isinstance(value, int) else (value[0], value[-1])
    return first, last
