"""Execution in the compiled kernel with convolutions on bytes, and the ranges of values that it needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Self

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.gating.static_policy import Policy
from prunegym.models.kernel import Value
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.kernel_path import KernelPath
from prunegym.models.skipping.layer_translation import square
from prunegym.models.skipping.packed_translation import PackedTranslation, is_packed
from prunegym.models.skipping.program import layers as kinds
from prunegym.models.skipping.program.lowering import UnsupportedError, lower
from prunegym.models.skipping.program.path import decide_first, decides_gate_by_gate
from prunegym.models.skipping.torch_paths.torch_layers import FullPath
from prunegym.models.storage.weights import quantize

Range = tuple[float, float]
"""Of a value: the smallest and the largest number that its bytes can mean."""
POSITIVE = ("relu", "relu6", "hardsigmoid", "sigmoid")
"""Activations after which no number is negative."""
LARGEST_SIGNED, LARGEST_BYTE = 127, 255
DEVIATIONS = 2.0
"""Standard deviations over images between the mean of a value's largest number and the end of its range."""


class Int8Path(KernelPath):
    """Runs convolutions on bytes, with sums of 32 bits; everything else, and all decisions, in float32.

    Weights are int8 with one scale for each output channel. Values are bytes with one scale each, taken from the ranges
    that :func:`calibrate` measures. Grouped and depthwise convolutions and linear layers stay in float32.

    Args:
        program: The network, float32 on the CPU.
        policy: Decides gate by gate in the kernel; None: masks are given.
        ranges: Of the values, by name.
        variant: Variant of the kernel; None for the best.

    Raises:
        UnsupportedError: If the kernel is not available, or a range is missing.
    """

    name = "int8"
    measured = False
    rounds = True
    shared_from = 1e8  # layers take less time, so threads wait for longer: ResNet-20 is faster on one

    def __init__(
        self,
        program: kinds.Program,
        policy: GatePolicy | None,
        ranges: Mapping[str, Range],
        variant: str | None = None,
    ) -> None:
        super().__init__(program, policy, variant, functools.partial(_ByteTranslation, ranges))

    @classmethod
    def make(cls, masked: MaskedCNN, program: Callable[[], kinds.Program], policy: GatePolicy | None) -> Self:
        """Return the path for a CNN that was calibrated."""
        if masked.ranges is None:
            raise UnsupportedError(
                "int8 needs the range of each value, and none is stored. Measure them on training images: "
                "prunegym quantize MODEL --calibrate, or model.calibrate(dataset) in Python."
            )
        return cls(program(), policy, masked.ranges)


class _ByteTranslation(PackedTranslation):
    """A plan whose convolutions read and write bytes."""

    per_pack = 4

    def __init__(
        self,
        ranges: Mapping[str, Range],
        program: kinds.Program,
        policy: GatePolicy | None,
        penalty: float | None,
        looks: MaskFeatures | None = None,
    ) -> None:
        super().__init__(program, policy, penalty, looks)
        self._ranges = ranges

    def _pack(self, name: str, x: Value) -> Value:
        low, high = self._range(name)
        return self.builder.to_bytes(x, scale_of(low, high), signed=low < 0)

    def _range(self, name: str) -> Range:
        if name not in self._ranges:
            raise UnsupportedError(f"int8 has no range for the value of step {name!r}. Calibrate the network again.")
        return self._ranges[name]

    def _conv(self, layer: kinds.Conv, x: Value, second: Value | None) -> Value:
        low, high = self._range(layer.name)
        signed = layer.activation not in POSITIVE
        codes, scales = quantize(layer.weight)
        return self.builder.byte_conv(
            x, codes, scales, self._bias(layer), scale=scale_of(low if signed else 0.0, high), signed=signed,
            stride=square(layer.stride), padding=layer.padding, dilation=square(layer.dilation),
            activation=layer.activation, gate=self._space(layer.name), residual=second,
        )  # fmt: skip


def scale_of(low: float, high: float) -> float:
    """Return what one step of a byte means: 255 steps above zero, or 127 on each side of it."""
    widest = max(-low, high) / LARGEST_SIGNED if low < 0 else high / LARGEST_BYTE
    return max(widest, torch.finfo(torch.float32).tiny)


@torch.no_grad()
def calibrate(masked: MaskedCNN, policy: Policy | None, images: Iterable[Tensor]) -> dict[str, Range]:
    """Measure the ranges of all values that :class:`Int8Path` needs as bytes.

    Args:
        masked: The CNN.
        policy: Decides the masks; without one nothing is masked.
        images: Batches of normalised training images (batch, channels, height, width).

    Returns:
        For each value the smallest and the largest number that its bytes shall reach, zero included: means over
        images, and two standard deviations more (of five choices the one with which most validation images of ResNet-20
        keep their class).

    Raises:
        InvalidInputError: If there is no image, or the network cannot be read as layers.
    """
    try:
        program = lower(masked)
    except UnsupportedError as error:
        raise InvalidInputError(f"The network cannot run in int8: {error}") from error
    inside = policy if isinstance(policy, GatePolicy) and decides_gate_by_gate(policy) else None
    path = FullPath(program, inside)
    convolutions = [layer for layer in program.layers if is_packed(layer)]
    wanted = {name for layer in convolutions for name in (layer.name, *layer.inputs)}
    found: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for batch in images:
        mask = None
        if policy is None:
            mask = torch.ones(len(batch), masked.mask_size, dtype=torch.bool)
        elif inside is None:
            mask = decide_first(masked, policy, batch, None)
        state = path.begin(batch, mask, None)
        _note(found, state.values)
        for layer, ending in zip(program.layers, program.ending, strict=True):
            state.run(layer)
            _note(found, {layer.name: state.values[layer.name]})
            for name in ending:
                del state.values[name]
    if not any(found.values()):
        raise InvalidInputError("There is no image to calibrate with.")
    return {name: _range_of(torch.cat(parts).double()) for name, parts in found.items()}


def _range_of(extremes: Tensor) -> Range:
    """Return a value's range from its smallest and largest number in each image (images, 2)."""
    mean, spread = extremes.mean(0), extremes.std(0, correction=0)
    low, high = (mean + DEVIATIONS * spread * torch.tensor([-1.0, 1.0])).tolist()
    # Without negative numbers there is no need for any.
    return (min(low, 0.0) if extremes.min() < 0 else 0.0), max(high, 0.0)


def _note(found: dict[str, list[Tensor]], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        if name in found:
            found[name].append(torch.stack(value.flatten(1).aminmax(dim=1), 1))
