"""Fair timing: forms of one computation in one process and in turn, the dense ones as fast as torch has them."""

from __future__ import annotations

import copy
import io
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Forms = dict[str, Callable[[], object]]
WARM_UP = 2
TURN, MOST_CALLS = 0.005, 20
"""Seconds that a form is called for at each turn, and how often at most."""
SETTLE = 0.15


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

    It stands beside the forms of :func:`dense_forms` and is none of them, so that ratios are to torch alone.

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


def clock_for(device: torch.device) -> Callable[[], float]:
    """Return what gives seconds for work on a device that is asked for in this thread.

    With one thread it is the thread's own time, so that what else runs on the machine changes no choice.
    """
    if device.type == "cuda":

        def synchronised() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return synchronised
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def settle(form: Callable[[], object]) -> None:
    """Run a form until torch's workers, which spin for a while after the form before, leave the cores to it.

    On one thread there are none. On a virtual machine of two cores they were seen to spin for a tenth of a second.
    """
    end = time.perf_counter() + SETTLE
    while torch.get_num_threads() > 1 and time.perf_counter() < end:
        form()


def measure(
    forms: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    limit: float = float("inf"),
) -> dict[str, float]:
    """Return the median seconds of each form, all taken in turn, round after round.

    What is short is called several times at each turn, as in a loop that classifies image after image; else its time
    would be that of reading code and weights anew into caches that the other forms have filled.

    Args:
        forms: The forms.
        rounds: Rounds after the first two, which warm up.
        clock: Returns seconds.
        limit: Seconds after which no further round begins; at least one is made.
    """
    times: dict[str, list[float]] = {name: [] for name in forms}
    calls = dict.fromkeys(forms, 1)
    begun = time.perf_counter()
    for number in range(rounds + WARM_UP):
        if number > WARM_UP and time.perf_counter() - begun > limit:
            break
        for name, form in forms.items():
            settle(form)
            start = clock()
            for _ in range(calls[name]):
                form()
            seconds = (clock() - start) / calls[name]
            if number >= WARM_UP:
                times[name].append(seconds)
            elif number == WARM_UP - 1:
                calls[name] = max(1, min(MOST_CALLS, int(TURN / max(seconds, 1e-9))))
    return {name: statistics.median(values) for name, values in times.items()}


def random_masks(
    batch: int, widths: list[int], generator: torch.Generator, low: float = 0.3, high: float = 0.7
) -> Tensor:
    """Draw masks whose kept share of each gate is drawn for each image: (batch, mask_size) bool."""
    parts = []
    for width in widths:
        share = low + (high - low) * torch.rand(batch, 1, generator=generator)
        ranks = torch.rand(batch, width, generator=generator).argsort(1).argsort(1)
        parts.append(ranks < (share * width).round().clamp(min=1))
    return torch.cat(parts, 1)


def machine() -> dict[str, Any]:
    """Describe this machine as far as times depend on it."""
    from prunegym.models import kernel

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = lines[0] if lines else name
    return {
        "processor": name,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernel": kernel.variants()[0] if kernel.available() else f"none: {kernel.unavailable_reason()}",
        "system": platform.platform(),
    }
