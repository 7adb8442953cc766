"""A network without masks in every form that makes it fast."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Forms = dict[str, Callable[[], object]]


def dense_forms(network: nn.Module, images: Tensor, compiled: bool = False) -> tuple[Forms, dict[str, str]]:
    """Return a network without masks in every way that torch has of making it fast on the CPU.

    Args:
        network: In eval mode, norms and all.
        images: (batch, channels, height, width) float, that it is timed with.
        compiled: Also ``torch.compile`` with freezing in both layouts, which takes a compiler and up to a minute each.

    Returns:
        The forms by name, and for each one that does not work with this network the reason.
    """
    forms: Forms = {"eager": lambda: network(images)}
    failed: dict[str, str] = {}
    makers: dict[str, tuple[torch.memory_format, Callable[[nn.Module, Tensor], Callable[[Tensor], object]]]] = {
        "norm folded": (torch.contiguous_format, lambda form, _: form),
        "channels_last": (torch.channels_last, lambda form, _: form),
        "traced, frozen": (torch.channels_last, lambda form, x: torch.jit.freeze(_traced(form, x))),
        "optimised for inference": (
            torch.contiguous_format, lambda form, x: torch.jit.optimize_for_inference(_traced(form, x)),
        ),
    }  # fmt: skip
    if compiled:
        makers["compiled, frozen"] = (torch.contiguous_format, _compiled)
        makers["compiled, channels_last"] = (torch.channels_last, _compiled)
    with warnings.catch_warnings():  # torch calls its own tracer deprecated; it is still the fastest here
        warnings.simplefilter("ignore")
        from torch.fx.experimental.optimization import fuse  # its import warns

        for name, (layout, make) in makers.items():
            x = images.contiguous(memory_format=layout)
            try:
                function = make(fuse(network).to(memory_format=layout), x)  # type: ignore[call-overload]
                function(x)
                forms[name] = functools.partial(function, x)
            except Exception as error:
                failed[name] = why(error)
    return forms, failed


def why(error: Exception) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def dense_in_onnx_runtime(network: nn.Module, images: Tensor) -> Callable[[], object]:
    """Return a network without masks in ONNX Runtime, on as many threads as torch has.

    It is not one of :func:`dense_forms`, so that ratios are to torch alone.

    Raises:
        ImportError: If it or ``onnx`` is not installed.
        Exception: Whatever torch or ONNX Runtime raise about a network that they cannot export or run.
    """
    import onnxruntime

    file: Any = io.BytesIO()  # the exporter takes one, whatever its types say
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (images,), file, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.contiguous().numpy()}
    return lambda: session.run(None, feed)


def _traced(form: nn.Module, x: Tensor) -> torch.jit.ScriptModule:
    return torch.jit.trace(form, x)  # type: ignore[no-untyped-call,no-any-return]


def _compiled(form: nn.Module, x: Tensor) -> Callable[[Tensor], object]:
    import torch._inductor.config as config

    with config.patch(freezing=True):
        function = torch.compile(form)
        function(x)
    return function
