"""Passes of one image that are recorded once, so that no Python runs between their layers."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.models.skipping.program.layers import Conv, Linear, Program
from prunegym.models.skipping.program.path import check_close

Tensors = tuple[Tensor, ...]


class Recorded:
    """A function of tensors, recorded by TorchScript at the first call. If that fails, the function itself runs.

    On a small network Python between the layers takes as long as the layers do. TorchScript is deprecated, but nothing
    else in torch needs no compiler.

    Args:
        function: Returns a tensor or several. It must do the same operations whatever the numbers are.
        example: Returns inputs, other ones each time.
    """

    def __init__(self, function: Callable[..., Any], example: Callable[[], Tensors]) -> None:
        self._function, self._example = function, example
        self._form: Callable[..., Any] | None = None
        self._lock = threading.Lock()  # one path may run in many Python threads

    @property
    def is_recorded(self) -> bool:
        """Whether a record is in use; False before the first call."""
        return isinstance(self._form, torch.jit.ScriptModule)

    def __call__(self, *inputs: Tensor) -> Any:
        """Return what the function returns."""
        if self._form is None:
            with self._lock:
                self._form = self._form or self._recorded()
        return self._form(*inputs)

    def _recorded(self) -> Callable[..., Any]:
        with torch.no_grad(), torch.autocast("cpu", enabled=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sizes become constants, and so they are; the tracer is called deprecated
            try:
                traced = torch.jit.trace(_Module(self._function).eval(), self._example(), check_trace=False)  # type: ignore[no-untyped-call]
                form = torch.jit.freeze(traced)
                for _ in range(2):  # it is optimised at the second call
                    inputs = self._example()
                    for found, expected in zip(_tuple(form(*inputs)), _tuple(self._function(*inputs)), strict=True):
                        check_close(found, expected)
            except Exception:  # whatever a tracer raises, the function works
                return self._function
        return form  # type: ignore[no-any-return]


class _Module(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self._function(*inputs)


def _tuple(result: Tensor | Tensors) -> Tensors:
    return (result,) if isinstance(result, Tensor) else tuple(result)


class Examples:
    """Returns an image of noise (1, channels, height, width) and a mask (1, mask_size) that keeps half of each gate.

    Each gate keeps a channel at least, and a gate of several is without one.
    """

    def __init__(self, program: Program) -> None:
        self._shape, self._widths = program.shapes[program.input], program.widths
        self._dtype = next(layer.weight.dtype for layer in program.layers if isinstance(layer, Conv | Linear))
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Return the next ones."""
        image = torch.randn(1, *self._shape, generator=self._generator).to(self._dtype)
        orders = [torch.randperm(width, generator=self._generator) for width in self._widths]
        return image, torch.cat([order < (len(order) + 1) // 2 for order in orders])[None]


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, layer: Conv) -> Tensor:
    """Run a depthwise convolution, with as many groups as there are channels."""
    if not torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, x.shape[1])
    settings = [list(pair) for pair in (layer.stride, layer.padding, layer.dilation)]
    return _scripted()(x, weight, bias, *settings)  # type: ignore[no-any-return]


def _any_channels(
    x: Tensor, weight: Tensor, bias: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    return torch.conv2d(x, weight, bias, stride, padding, dilation, x.size(1))


@functools.cache
def _scripted() -> Callable[..., Any]:
    """Return a depthwise convolution whose number of groups does not become a constant when it is recorded."""
    return torch.jit.script(_any_channels)
