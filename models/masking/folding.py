"""Batch norm folded into the convolution before it."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models.masking.graph import Graph, Step
from prunegym.models.masking.operators import Kind


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return a batch norm in eval mode as a factor and an offset for each channel, both (channels,) float32.

    Raises:
        InvalidInputError: If it has no running statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise InvalidInputError(
            "A batch norm has no running statistics (track_running_stats=False), so its output depends on the batch. "
            "It cannot be replaced by a factor and an offset. Use a batch norm with running statistics."
        )
    # (x - mean) / sqrt(var + eps) * weight + bias = x * scale + shift.
    scale = 1 / torch.sqrt(norm.running_var.double() + norm.eps)
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    return scale.detach().float(), shift.detach().float()


def norm_behind(graph: Graph, network: nn.Module, step: Step, points: Collection[str]) -> nn.BatchNorm2d | None:
    """Return the batch norm that can be folded into a convolution (it alone reads the output), None if there is none.

    Args:
        graph: The network's steps.
        network: Its modules.
        step: The convolution.
        points: Steps whose output is masked; a norm behind one of them cannot be folded.
    """
    users = [graph[name] for name in graph.users[step.name] if graph[name].kind is not Kind.SIZE]
    if len(users) != 1 or users[0].op != "module" or step.name == graph.output or step.name in points:
        return None
    norm = network.get_submodule(users[0].target)
    return norm if isinstance(norm, nn.BatchNorm2d) else None


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Return the weight (out, in, kh, kw) and bias (out,) float32 of a convolution with the norm behind it."""
    weight = conv.weight.detach().float()
    bias = torch.zeros(len(weight), device=weight.device) if conv.bias is None else conv.bias.detach().float()
    if norm is None:
        return weight, bias
    scale, shift = scale_and_shift(norm)
    # (W x + b) * scale + shift = (W * scale) x + (b * scale + shift).
    return weight * scale[:, None, None, None], bias * scale + shift
