"""A network without masks in every form that makes it fast."""

from __future__ import annotations

import copy
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
    last_images = images.contiguous(memory_format=torch.channels_last)

    def call(make: Callable[[], Callable[[Tensor], object]], x: Tensor) -> Callable[[], object]:
        function = make()
        function(x)
        return lambda: function(x)

    def frozen() -> Callable[[Tensor], object]:
        traced = torch.jit.trace(_channels_last(network), last_images)  # type: ignore[no-untyped-call]
        return torch.jit.freeze(traced)  # type: ignore[no-any-return]

    def optimised() -> Callable[[Tensor], object]:
        traced = torch.jit.trace(_folded(network), images)  # type: ignore[no-untyped-call]
        return torch.jit.optimize_for_inference(traced)

    def inductor(form: nn.Module, x: Tensor) -> Callable[[Tensor], object]:
        import torch._inductor.config as config

        with config.patch(freezing=True):
            function = torch.compile(copy.deepcopy(form))
            function(x)
        return function

    makers: dict[str, tuple[Callable[[], Callable[[Tensor], object]], Tensor]] = {
        "norm folded": (lambda: _folded(network), images),
        "channels_last": (lambda: _channels_last(network), last_images),
        "traced, frozen": (frozen, last_images),
        "optimised for inference": (optimised, images),
    }
    if compiled:
        makers["compiled, frozen"] = (lambda: inductor(_folded(network), images), images)
        makers["compiled, channels_last"] = (lambda: inductor(_channels_last(network), last_images), last_images)
    with warnings.catch_warnings():  # torch calls its own tracer deprecated; it is still the fastest here
        warnings.simplefilter("ignore")
        for name, (make, x) in makers.items():
            try:
                forms[name] = call(make, x)
            except Exception as error:
                failed[name] = (str(error) or type(error).__name__).splitlines()[0]
    return forms, failed


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


def _folded(network: nn.Module) -> nn.Module:
    from torch.fx.experimental.optimization import fuse  # its import warns, so it is not at the top

    return fuse(network)


def _channels_last(network: nn.Module) -> nn.Module:
    return _folded(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
