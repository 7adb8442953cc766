"""One network of the table in docs/networks.md: what is found in it, and whether that is right."""

from __future__ import annotations

import copy
import importlib
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunegym.errors import PruneGymError
from prunegym.models import MaskedCNN
from prunegym.models.data.normalisation import Normalisation
from prunegym.models.export.onnx_model import export_onnx
from prunegym.models.skipping.skipping_cnn import SkippingCNN
from prunegym.models.storage.cnn_info import CNNInfo
from prunegym.models.storage.model_file import Bundle

Facts = dict[str, Any]
EXACT = 1e-4


class Row(NamedTuple):
    """A network: number, name, where it comes from, size of images, output, and Torch-Pruning's MAC share at half."""

    number: int
    name: str
    make: Callable[[], nn.Module]
    size: int = 224
    output: str | int | None = None
    static_half: float | None = None


@torch.no_grad()
def measured(row: Row) -> Facts:
    """Return all facts about a network that need no quiet machine."""
    torch.manual_seed(0)
    facts: Facts = {"number": row.number, "network": row.name, "size": row.size, "static_half": row.static_half}
    try:
        network = row.make().eval()
    except ImportError as error:
        return {**facts, "status": "not tried", "reason": str(error).splitlines()[0]}
    randomise(network, row.size)
    before, kept = _memory(), None
    for gates in ("auto", "all"):
        try:
            masked, found = _constructed(network, row, gates)
        except PruneGymError as refusal:
            if gates == "auto" and "gates='all'" in str(refusal):
                continue  # all its gates are in sums
            return {**facts, "status": "refused", "reason": str(refusal)}
        if kept is None:
            found["memory_mib"], kept = _memory() - before, masked
        # The gates of "auto" are among all gates, so these are cut by other code.
        facts[gates] = {**found, **_exact(network, masked, row, cut=gates == "all")}
    assert kept is not None
    facts["status"] = "taken"
    skipping = SkippingCNN(kept)
    facts["ways"], facts["not"] = list(skipping.available), skipping.unavailable
    facts["export"] = _exported(kept, row)
    return facts


def _memory() -> float:
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def randomise(network: nn.Module, size: int) -> None:
    """Give norms weights and biases that are not trivial, and statistics of noise; a trained network has these too."""
    generator = torch.Generator().manual_seed(0)
    norms = []
    for module in network.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 1 and "Norm" in type(module).__name__:
            weight.copy_(torch.rand(weight.shape, generator=generator) + 0.5)
            if isinstance(bias, nn.Parameter):
                bias.copy_(torch.randn(bias.shape, generator=generator) * 0.3)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            norms.append(module)
    for name, parameter in network.named_parameters():
        # Some branches begin with a factor of zero, or nearly so: their channels would have no effect.
        if (
            name.rsplit(".", 1)[-1] in ("gamma", "layer_scale", "skipinit_gain", "gain")
            and parameter.abs().max() < 1e-3
        ):
            parameter.fill_(0.5)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    network(torch.randn(4, 3, size, size, generator=generator))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def _constructed(network: nn.Module, row: Row, gates: str) -> tuple[MaskedCNN, Facts]:
    start = time.process_time()
    masked = MaskedCNN(network, torch.zeros(1, 3, row.size, row.size), gates=gates, output=row.output)
    seconds = time.process_time() - start
    share = masked.cost.mac_share(half(masked)).item()
    return masked, {
        "seconds": seconds,
        "gates": len(masked.gates),
        "bits": masked.mask_size,
        "macs": masked.cost.total_macs,
        "removable": 1 - masked.cost.fixed_macs / masked.cost.total_macs,
        "half": share,
        "rejected": dict(masked.rejected),
    }


def half(masked: MaskedCNN) -> Tensor:
    """Return a mask (1, mask_size) without the first half of each gate's channels."""
    mask = torch.ones(1, masked.mask_size)
    for part in masked.split(mask):
        part[:, : part.shape[1] // 2] = 0
    return mask


def _exact(network: nn.Module, masked: MaskedCNN, row: Row, cut: bool) -> Facts:
    """Return by how much the masked network differs from the plain one, and at half from one cut by other code."""
    images = torch.randn(2, 3, row.size, row.size)
    plain = _chosen(network(images.clone()), row.output)
    scale = plain.abs().max()
    ones = float((masked(images, torch.ones(2, masked.mask_size)) - plain).abs().max() / scale)
    if not cut:
        return {"ones_error": ones}
    got = masked(images, half(masked).expand(2, -1))
    found: Facts = {"ones_error": ones, "oracle": "none", "no": {}}
    for name, other in (("Torch-Pruning", _pruned), ("zeroed filters", _zeroed), ("hooks", _hooked)):
        try:
            wanted = other(network, masked, images, row.output)
        except Exception as error:  # other libraries raise anything
            found["no"][name] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        error_at_half = float((got - wanted).abs().max() / wanted.abs().max())
        change = float((wanted - plain).abs().max() / scale)
        if error_at_half < EXACT:
            return {**found, "half_error": error_at_half, "change": change, "oracle": name}
        found["no"][name] = f"differs by {error_at_half:.0e}"
        found["half_error"] = error_at_half
    return found


def _chosen(result: Any, output: str | int | None) -> Tensor:
    if output is None or isinstance(result, Tensor):
        return result  # type: ignore[no-any-return]
    return result[output]  # type: ignore[no-any-return]


def _pruned(network: nn.Module, masked: MaskedCNN, images: Tensor, output: str | int | None) -> Tensor:
    """Return the outputs of a copy from which Torch-Pruning has cut the first half of each gate."""
    library = importlib.import_module("torch_pruning")
    cut = copy.deepcopy(network).requires_grad_(True)
    with torch.enable_grad():
        graph = library.DependencyGraph().build_dependency(
            cut, torch.randn_like(images[:1]), output_transform=lambda result: _chosen(result, output)
        )
    dropped = half(masked)[0] == 0
    alive: dict[str, list[int]] = {}
    for gate in masked.gates:
        step = masked.graph[gate.producers[0]]
        bits = masked.found.makes[step.name]
        start = sum(other.width for other in masked.gates[: masked.gates.index(gate)])
        channels = [c for c, bit in enumerate(bits.tolist()) if start <= bit < start + gate.width and dropped[bit]]
        now = alive.setdefault(step.layer, list(range(len(bits))))
        layer = cut.get_submodule(step.layer)
        linear = isinstance(layer, nn.Linear)
        remove = library.prune_linear_out_channels if linear else library.prune_conv_out_channels
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.out_channels > 1:
            remove = library.prune_depthwise_conv_out_channels
        group = graph.get_pruning_group(layer, remove, idxs=[now.index(channel) for channel in channels])
        group.prune()
        alive[step.layer] = [channel for channel in now if channel not in set(channels)]
    return _chosen(cut.eval()(images.clone()), output)


def _zeroed(network: nn.Module, masked: MaskedCNN, images: Tensor, output: str | int | None) -> Tensor:
    """Return the outputs of a copy with zeros as filters of the first half of each gate; for networks without norms."""
    plain = copy.deepcopy(network)
    norms = nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm
    if any(isinstance(module, norms) for module in plain.modules()):
        raise TypeError("it has norms, which make something of zero")
    dropped = half(masked)[0] == 0
    for producer in {name for gate in masked.gates for name in gate.producers}:
        layer, bits = plain.get_submodule(masked.graph[producer].layer), masked.found.makes[producer]
        zero = (bits >= 0) & dropped[bits.clamp(min=0)]
        layer.weight[zero] = 0
        if hasattr(layer, "gain"):  # the factor of a standardised weight
            layer.gain[zero] = 0
        if layer.bias is not None:
            layer.bias[zero] = 0
    return _chosen(plain(images.clone()), output)


def _hooked(network: nn.Module, masked: MaskedCNN, images: Tensor, output: str | int | None) -> Tensor:
    """Return the outputs of a copy in which the first half of each gate is zeroed, after norm and activation.

    Hooks zero what modules return. Sums and concatenations in the code of a module are zeroed as torch runs them.
    """
    plain = copy.deepcopy(network)
    mask, starts, start = half(masked), {}, 0
    for number, gate in enumerate(masked.gates):
        starts[number], start = start, start + gate.width
    calls: dict[str, dict[int, list[Tensor]]] = {}
    operations: dict[tuple[str, str], dict[int, list[Tensor]]] = {}
    for name, places in masked.places.items():
        step = masked.graph[name]
        factor = torch.ones(())
        for number, bits in places:
            own = mask[:, starts[number] : starts[number] + masked.gates[number].width]
            factor = factor * bits.factors(own, images.new_empty(1, *step.shape[1:]))
        same = [other for other in masked.graph.steps if other.layer == step.layer and other.kind is step.kind]
        last = [other for other in masked.graph.steps if other.layer == step.layer][-1]
        whole = next(plain.get_submodule(step.layer).children(), None) is None or step.weight
        if whole and last.shape == step.shape:  # otherwise the module returns it in another layout
            place = [other.name for other in same].index(name)
            calls.setdefault(step.layer, {}).setdefault(place, []).append(factor)
        else:
            place = [other.name for other in same if other.operation == step.operation].index(name)
            operations.setdefault((step.layer, step.operation), {}).setdefault(place, []).append(factor)
    for layer, factors in calls.items():
        plain.get_submodule(layer).register_forward_hook(_Zero(factors))
    with _ZeroOperations(plain, operations):
        return _chosen(plain(images.clone()), output)


class _Zero:
    """A hook that multiplies what a module returns, each call by its own factors."""

    def __init__(self, factors: dict[int, list[Tensor]]) -> None:
        self.factors, self.call = factors, -1

    def __call__(self, _module: nn.Module, _inputs: Any, result: Tensor) -> Tensor:
        self.call += 1
        for factor in self.factors.get(self.call, ()):
            result = result * factor
        return result


class _ZeroOperations(TorchDispatchMode):
    """Multiplies what operations in a module's own code return: by module, name of the operation, and count."""

    def __init__(self, network: nn.Module, factors: dict[tuple[str, str], dict[int, list[Tensor]]]) -> None:
        super().__init__()
        self.factors, self.calls, self.inside = factors, Counter[tuple[str, str]](), [""]
        for name, module in network.named_modules():
            module.register_forward_pre_hook(lambda _module, _inputs, name=name: self.inside.append(name))
            module.register_forward_hook(self._leave)

    def _leave(self, *_: object) -> None:
        self.inside.pop()

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        at = self.inside[-1], func.overloadpacket.__name__.rstrip("_").removeprefix("native_")
        for factor in self.factors.get(at, {}).get(self.calls[at], ()):
            # In place, as `add_` returns what it was given. Norms return their statistics too.
            (result[0] if isinstance(result, tuple) else result).mul_(factor)
        self.calls[at] += 1
        return result


def _exported(masked: MaskedCNN, row: Row) -> Facts:
    """Return whether the masked network exports, and by how much ONNX Runtime's outputs differ at half."""
    runtime = importlib.import_module("onnxruntime")
    outputs = masked.output_shape[0]
    blank = Normalisation((0.5,) * 3, (0.5,) * 3)
    info = CNNInfo(row.name, outputs, (3, row.size, row.size), blank, tuple(map(str, range(outputs))), "none")
    pixels = torch.randint(0, 256, (1, 3, row.size, row.size), dtype=torch.uint8)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = export_onnx(Bundle(masked=masked, info=info), Path(folder) / "network.onnx", decide="input")
            session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        mask = half(masked)
        got = session.run(["logits"], {"images": pixels.numpy(), "mask": mask.bool().numpy()})[0]
    except Exception as error:  # ours says why; the runtime's own show a fault of ours
        return {"status": "refused" if isinstance(error, PruneGymError) else "failed", "reason": str(error)[:400]}
    wanted = masked(blank(pixels), mask)
    return {"status": "done", "error": float((torch.as_tensor(got) - wanted).abs().max() / wanted.abs().max())}
