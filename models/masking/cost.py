"""The cost of masks: exact multiply-accumulates (MACs) and weights of each mask in a batch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prunegym.models.masking.compensation import Reader
from prunegym.models.masking.gates import Found
from prunegym.models.masking.graph import Graph, Step, attribute_of
from prunegym.models.masking.operators import Kind
from prunegym.validation import bits, finite, shape


class CostModel:
    """Counts the MACs and weights under a mask.

    A layer's MACs are (input channels kept) x (output channels kept) x (MACs of one such pair). So the cost of a
    channel depends on how many channels the neighbouring layers keep. One MAC is one multiply-accumulate. Convolutions
    and all matrix products count, also those in attention, recurrent and bilinear layers; norms, pooling and
    activations do not, as in ``torch.utils.flop_counter`` (2 per MAC).
    A layer that scales a gate's channels (the last one of a squeeze-and-excitation) has as many outputs as are kept.

    Attributes:
        total_macs: MACs of one image through the original network.
        fixed_macs: MACs that no mask can remove.
        total_weights: Weights (without biases) of the original network's convolutions and linears.
    """

    def __init__(self, graph: Graph, network: nn.Module, found: Found, readers: Collection[Reader] = ()) -> None:
        gates = found.gates
        self._widths = torch.tensor([gate.width for gate in gates], dtype=torch.float64)
        reads, makes, macs, weights = [], [], [], []
        counted: set[str] = set()
        for step in graph.steps:
            if step.name not in found.makes:
                continue
            made, shape = found.makes[step.name], tuple(graph[step.inputs[0]].shape)
            axis = len(step.shape) - 1 if step.kind is Kind.LINEAR else 1
            size = _weight_size(step, network)
            if step.kind is Kind.DEPTHWISE:
                pairs = size / len(made)
                makes.append(found.counts(torch.tensor([-1])))
                reads.append(found.counts(made))
            else:
                # Weights of one pair of an input and an output channel: the size of a kernel.
                pairs = size / (len(made) * len(found.reads[step.name]))
                reads.append(found.counts(found.reads[step.name]))
                makes.append(found.counts(made))
            placed = shape if step.kind is Kind.TRANSPOSED else step.shape
            macs.append(pairs * math.prod(count for place, count in enumerate(placed) if place not in (0, axis)))
            # A layer that is called twice costs its MACs twice, but has its weights once.
            weights.append(0.0 if step.weight in counted else pairs)
            counted.add(step.weight)
        self._reads, self._makes = torch.stack(reads), torch.stack(makes)
        self._macs = torch.tensor(macs, dtype=torch.float64)
        self._constants_of = torch.zeros(len(readers), len(gates), dtype=torch.float64)
        self._constants_to = torch.zeros(len(readers), len(gates) + 1, dtype=torch.float64)
        for row, reader in enumerate(readers):
            self._constants_of[row, list(reader.gates)] = 1
            self._constants_to[row] = found.counts(found.makes[reader.step])
        self._weights = torch.tensor(weights, dtype=torch.float64)
        self._other_macs = 0.0
        self._other_weights = float(_uncounted_weights(network, counted))
        ones = torch.ones(1, int(self._widths.sum()))
        self.total_weights = int(self.weights(ones).item())
        self._other_macs = _counted_macs(graph, network) - float(self.macs(ones).item())
        self.total_macs = int(self.macs(ones).item())
        self.fixed_macs = int(self.macs(torch.zeros_like(ones)).item())

    def kept(self, mask: Tensor) -> Tensor:
        """Return the number of kept channels of each gate: mask (batch, mask_size) -> (batch, gates) float64."""
        shape("The mask", mask, ("batch", int(self._widths.sum())))
        if not mask.requires_grad:  # while gates are trained, masks are soft
            bits("The mask", mask, "Costs are defined for masks of 0 and 1.")
        slices = torch.split(mask.double(), [int(width) for width in self._widths], dim=1)
        return torch.stack([part.sum(1) for part in slices], dim=1)

    def macs_of_widths(self, kept: Tensor) -> Tensor:
        """Return the MACs of an image from the kept channels of each gate: (batch, gates) -> (batch,) float64."""
        return self._count(kept, self._macs) + self._other_macs

    def macs(self, mask: Tensor) -> Tensor:
        """Return the MACs of an image under each mask: (batch, mask_size) -> (batch,) float64."""
        return self.macs_of_widths(self.kept(mask))

    def mac_share(self, mask: Tensor) -> Tensor:
        """Return MACs under each mask / MACs of the original network: (batch, mask_size) -> (batch,) float64."""
        return self.macs(mask) / self.total_macs

    def total_share(self, mask: Tensor, policy_macs: float | Tensor) -> Tensor:
        """Return the MAC share of each mask plus that of the policy.

        Args:
            mask: (batch, mask_size).
            policy_macs: MACs of deciding the mask of an image: a number for all, or (batch,) numbers.

        Returns:
            (batch,) float64.
        """
        spent = policy_macs if isinstance(policy_macs, Tensor) else finite("policy_macs", policy_macs, 0)
        return self.mac_share(mask) + spent / self.total_macs

    def compensation_macs(self, mask: Tensor) -> Tensor:
        """Return the MACs of adding the constants of an image's masked channels to the biases of their readers.

        A masked channel costs one for each output that its reader computes. A mask that is the same for all images has
        them in its biases already, at no cost.

        Args:
            mask: (batch, mask_size).

        Returns:
            (batch,) float64.
        """
        kept = self.kept(mask)
        device = kept.device
        off = (self._widths.to(device) - kept) @ self._constants_of.to(device).T
        return (off * (_with_one(kept) @ self._constants_to.to(device).T)).sum(1)

    def weights(self, mask: Tensor) -> Tensor:
        """Return the number of weights under each mask: (batch, mask_size) -> (batch,) float64.

        The article's ||M||_0 over weights: a weight counts if its input channel and its output channel are both kept.
        """
        return self._count(self.kept(mask), self._weights) + self._other_weights

    def channel_price(self) -> Tensor:
        """Return the MACs saved by removing one channel of each gate from the full network: (gates,) float64."""
        full = self._widths.repeat(len(self._widths), 1)
        return self.total_macs - self.macs_of_widths(full - torch.eye(len(full), dtype=torch.float64))

    def _count(self, kept: Tensor, price: Tensor) -> Tensor:
        device = kept.device
        kept = _with_one(kept.double())
        # Sum over layers of (input channels kept) x (output channels kept) x (price of a pair).
        live = (kept @ self._reads.to(device).T) * (kept @ self._makes.to(device).T)
        return live @ price.to(device)


def _with_one(kept: Tensor) -> Tensor:
    """Return kept channels (batch, gates) with a last column of ones, for the channels that are always there."""
    return torch.cat([kept, kept.new_ones(len(kept), 1)], dim=1)


def _weight_size(step: Step, network: nn.Module) -> int:
    """Return how many weights a layer has."""
    if step.weight:
        return attribute_of(network, step.weight).numel()
    own = [module.weight for name, module in network.named_modules() if name == step.layer]
    return int(own[0].numel()) if own and isinstance(own[0], Tensor) else 0


def _uncounted_weights(network: nn.Module, counted: set[str]) -> int:
    """Return the weights of convolutions and linears in which no channel can be masked, e.g. grouped ones."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
    layers = [layer for name, layer in network.named_modules() if f"{name}.weight".lstrip(".") not in counted]
    return sum(layer.weight.numel() for layer in layers if isinstance(layer, kinds))


def _counted_macs(graph: Graph, network: nn.Module) -> float:
    """Count the MACs of the whole network for one image, with the operations that have no channels."""
    parameter = next(network.parameters())
    images = torch.zeros(1, *graph[graph.input].shape[1:], device=parameter.device, dtype=parameter.dtype)
    with counting() as counter, torch.no_grad():
        network(images)
    return float(counter.get_total_flops()) / 2


@contextlib.contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count the operations of the code inside, 2 for each MAC of a convolution or a matrix product.

    torch's counter does not count the fused operators of attention and LSTMs on a CPU, nor products with vectors. So
    attention is not fused here and consists of plain products, and the other operators have a formula.

    Example:
        >>> with counting() as counter, torch.no_grad():
        ...     _ = nn.LSTM(3, 5)(torch.zeros(7, 1, 3))
        >>> counter.get_total_flops() // 2 == 7 * 4 * 5 * (3 + 5)
        True
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH), counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _matrix_vector(matrix: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _add_matrix_vector(_bias: torch.Size, matrix: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _add_matrices(_bias: Any, left: torch.Size, right: torch.Size, *_: Any, **__: Any) -> int:
    # (..., rows, inner) x (..., inner, columns)
    return 2 * math.prod(left) * right[-1]


def _matrices(left: torch.Size, right: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * math.prod(left) * right[-1]


def _bilinear(left: torch.Size, weight: torch.Size, _right: torch.Size, *_: Any, **__: Any) -> int:
    # torch expands the operands to (rows, outputs, left, right): each weight is used once for each row.
    return 2 * left[0] * math.prod(weight)


def _recurrent_layer(x: torch.Size, from_input: torch.Size, from_state: torch.Size, *_: Any, **__: Any) -> int:
    # x is (time, batch, in); a weight (4 * hidden, in) or (4 * hidden, hidden) is used once for each row.
    return 2 * x[0] * x[1] * (math.prod(from_input) + math.prod(from_state))


def _sequence_convolution(x: torch.Size, weight: torch.Size, *_: Any, out_shape: Any) -> int:
    # Input (time, batch, in), weight (kernel, in, out), output (time, batch, out).
    return int(2 * out_shape[0] * x[1] * math.prod(weight))


_aten = torch.ops.aten
_FORMULAS: dict[Any, Any] = {
    **dict.fromkeys((_aten.mv, _aten.dot, _aten.vdot), _matrix_vector),
    _aten.addmv: _add_matrix_vector,
    **dict.fromkeys((_aten.addbmm, _aten._addmm_activation), _add_matrices),
    _aten._int_mm: _matrices,
    _aten._trilinear: _bilinear,
    _aten.mkldnn_rnn_layer: _recurrent_layer,
    _aten.conv_tbc: _sequence_convolution,
}
