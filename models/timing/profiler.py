"""Profiles of a masked CNN: times of dense forms in torch, masked, skipping, and layer by layer."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from prunegym.models.gating.static_policy import Policy, deciding_macs
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.int8_path import calibrate
from prunegym.models.skipping.program.lowering import lower
from prunegym.models.skipping.program.path import DECIDE, ExecutionPath, decides_gate_by_gate
from prunegym.models.skipping.skipping_cnn import SkippingCNN
from prunegym.models.stopwatch import median_seconds
from prunegym.models.storage.run_folder import machine

Forms = dict[str, Callable[[], object]]
"""Functions that run a batch, by name."""
LIMIT = 60.0
"""Seconds after which no further round starts."""


@dataclasses.dataclass(frozen=True)
class LayerTime:
    """A layer's share of the time, for one image.

    Attributes:
        layer: Its label; ``decide`` and a gate's name for a decision of the policy.
        kept: Mean kept share of its gate; None if it has no gate.
        seconds: Seconds with the masks.
        seconds_full: Seconds with all channels; None for decisions.
    """

    layer: str
    kept: float | None
    seconds: float
    seconds_full: float | None


@dataclasses.dataclass(frozen=True)
class Profile:
    """Times of one batch, medians in seconds.

    Attributes:
        dense: The network without masks, by form.
        skipping: The network with masks, by execution; times include the policy's.
        reference: For comparison: the kernel with all channels, and with given masks if a policy decides; the dense
            network in ONNX Runtime, if that is installed.
        taken: The execution that ``auto`` uses.
        reason: The reason of this choice.
        failed: Forms that could not be run, with the reason.
        shortfall: The part of the network that keeps much from being skipped; empty if there is none.
        mac_share: Mean MAC share of the masks, the policy's own included.
        kept_share: Mean kept share.
        layers: Layer by layer in the first path that skips, if one can run the network.
        layers_of: Name of that path; empty if there is none.
        batch: Images in a batch.
        masks: The source of the masks.
        machine: The machine.
    """

    dense: dict[str, float]
    skipping: dict[str, float]
    reference: dict[str, float]
    taken: str
    reason: str
    failed: dict[str, str]
    shortfall: str
    mac_share: float
    kept_share: float
    layers: tuple[LayerTime, ...]
    layers_of: str
    batch: int
    masks: str
    machine: dict[str, Any]

    @property
    def times(self) -> dict[str, float]:
        """The seconds of all forms."""
        return {**{f"dense, {name}": value for name, value in self.dense.items()}, **self.skipping, **self.reference}

    @property
    def fastest_dense(self) -> str:
        """Name of the fastest dense form."""
        return min(self.dense, key=lambda name: self.dense[name])

    def ratio(self, seconds: float) -> float:
        """Return a time divided by that of the fastest dense form."""
        return seconds / self.dense[self.fastest_dense]

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain JSON, with ratios to the fastest dense form."""
        ratios = {name: self.ratio(value) for name, value in self.times.items()}
        return {**dataclasses.asdict(self), "fastest_dense": self.fastest_dense, "ratios": ratios}


@torch.inference_mode()
def profile(
    masked: MaskedCNN,
    batches: list[Tensor],
    masks: list[Tensor] | None = None,
    policy: Policy | None = None,
    *,
    penalty: float | None = None,
    rounds: int = 20,
    compiled: bool = False,
    also: Sequence[str] = (),
    forget: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Profile:
    """Time a masked CNN on batches of one size, with other images and masks in each round.

    Args:
        masked: The CNN, on the CPU.
        batches: Each (batch, channels, height, width) float, normalised.
        masks: One for each batch, (batch, mask_size) bool; None: the policy decides.
        policy: The policy, if there are no masks.
        penalty: lambda, for a policy with a ``penalty_range``.
        rounds: Rounds, if they take less than a minute.
        compiled: Also time ``torch.compile`` of the dense network.
        also: Further executions to time, ``int8`` or ``bfloat16``. For ``int8`` a CNN that was not calibrated gets its
            ranges from ``batches``, for this measurement only.
        forget: Gather weights again for each batch, as for masks that never come twice. Otherwise each batch runs once
            before the clock starts.
        clock: Returns seconds.

    Returns:
        Medians of all forms; each round times all of them.
    """
    fast = SkippingCNN(masked, policy)
    given: list[Tensor] = [fast(images, penalty=penalty).mask for images in batches] if masks is None else masks
    wanted: list[Tensor | None] = [None] * len(batches) if masks is None else cast("list[Tensor | None]", masks)
    dense, failed = dense_forms(masked.network, batches[0], compiled)
    taken = fast.way(batches[0], wanted[0], penalty) if masks is not None else fast.choices[-1].execution
    skipping: Forms = {
        name: _in_turn(SkippingCNN(masked, policy, name), batches, wanted, penalty, forget) for name in fast.available
    }
    for name in also:
        with _calibrated(masked, policy, batches) if name == "int8" else contextlib.nullcontext():
            skipping[name] = _in_turn(SkippingCNN(masked, policy, name), batches, wanted, penalty, forget)
    reference: Forms = {}
    try:
        reference["ONNX Runtime, dense"] = dense_in_onnx_runtime(masked.network, batches[0])
    except Exception as error:  # it is optional, and torch's export may raise any error
        failed["ONNX Runtime, dense"] = why(error)
    path = next((path for path in map(fast.path, fast.available) if path.skips), None)
    if path is not None:
        ones = [torch.ones_like(mask) for mask in given]
        bare = SkippingCNN(masked, None, path.name)
        reference[f"{path.name}, all channels"] = _in_turn(bare, batches, ones)
        if policy is not None:
            reference[f"{path.name}, masks given"] = _in_turn(bare, batches, given)
    forms = {"dense": dense, "skipping": skipping, "reference": reference}
    flat = {f"{kind}/{name}": form for kind, named in forms.items() for name, form in named.items()}
    seconds = median_seconds(flat, rounds, clock, LIMIT)
    found = {kind: {name: seconds[f"{kind}/{name}"] for name in named} for kind, named in forms.items()}
    mask = torch.cat(given)
    macs = masked.cost.total_share(mask, deciding_macs(masked, policy, mask) if policy else 0).mean().item()
    return Profile(
        **found, taken=taken, reason=fast.choices[-1].reason, failed={**failed, **fast.unavailable},
        shortfall=fast.shortfall, mac_share=macs,
        kept_share=float(mask.float().mean()), batch=len(batches[0]), machine=machine(),
        layers=() if path is None else _layers(masked, path, batches, given, policy, penalty, rounds),
        layers_of="" if path is None else path.name, masks="given" if masks is not None else "by the policy",
    )  # fmt: skip


@contextlib.contextmanager
def _calibrated(masked: MaskedCNN, policy: Policy | None, batches: list[Tensor]) -> Iterator[None]:
    before = masked.ranges
    masked.ranges = before or calibrate(masked, policy, batches)
    yield
    masked.ranges = before


def _in_turn(
    fast: SkippingCNN,
    batches: list[Tensor],
    masks: Iterable[Tensor | None],
    penalty: float | None = None,
    forget: bool = True,
) -> Callable[[], object]:
    """Return a function that runs one batch after the other."""
    once = list(zip(batches, masks, strict=True))
    pairs, path = itertools.cycle(once), fast.path(fast.execution)
    if not forget:
        for images, mask in once:  # data that a path stores for masks that come again exists before the clock starts
            fast(images, mask, penalty)

    def run() -> object:
        if forget:
            path.forget()
        images, mask = next(pairs)
        return fast(images, mask, penalty)

    return run


def _layers(
    masked: MaskedCNN,
    path: ExecutionPath,
    batches: list[Tensor],
    masks: list[Tensor],
    policy: Policy | None,
    penalty: float | None,
    rounds: int,
) -> tuple[LayerTime, ...]:
    decides = decides_gate_by_gate(policy)
    program = lower(masked)
    bare = type(path).make(masked, lambda: program, None)
    times: Counter[str] = Counter()
    full: Counter[str] = Counter()
    turns = zip(range(max(rounds, 1)), itertools.cycle(zip(batches, masks, strict=True)), strict=False)
    for _, (images, mask) in turns:
        times.update(path.timed(images, None if decides else mask, penalty))
        full.update(bare.timed(images, torch.ones_like(mask)))
    count = max(rounds, 1) * len(batches[0])
    kept = [float(part.float().mean()) for part in masked.split(torch.cat(masks))]
    layers = {layer.name: layer for layer in program.layers}
    rows = []
    for name, seconds in times.items():
        decided = int(name.removeprefix(DECIDE)) if name.startswith(DECIDE) else None
        layer = layers.get(name)
        space = program.spaces.get(name)
        gate = (space if space is not None and space < len(kept) else None) if decided is None else decided
        label = f"{DECIDE}{masked.gates[decided].name}" if decided is not None else layer.label if layer else name
        share = None if gate is None else kept[gate]
        rows.append(LayerTime(label, share, seconds / count, full[name] / count if name in full else None))
    return tuple(rows)


def dense_forms(network: nn.Module, images: Tensor, compiled: bool = False) -> tuple[Forms, dict[str, str]]:
    """Return a network without masks in all forms in which torch makes networks fast on the CPU.

    Args:
        network: The network in eval mode, with its norms.
        images: (batch, channels, height, width) float, for the measurements.
        compiled: Also ``torch.compile`` with freezing in both layouts. This needs a compiler and up to a minute each.

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
        from torch.fx.experimental.optimization import fuse  # its import gives a warning

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
        Exception: Any error of torch or ONNX Runtime if they cannot export or run the network.
    """
    import onnxruntime

    file: Any = io.BytesIO()  # the exporter accepts it, although its type hints do not
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
