"""Execution in the compiled kernel with convolutions on bfloat16."""

from __future__ import annotations

from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.kernel import Value
from prunegym.models.skipping.kernel_path import KernelPath
from prunegym.models.skipping.layer_translation import square
from prunegym.models.skipping.packed_translation import PackedTranslation
from prunegym.models.skipping.program import layers as kinds


class _Bfloat16Translation(PackedTranslation):
    """A plan whose convolutions read and write bfloat16."""

    per_pack = 2

    def _pack(self, name: str, x: Value) -> Value:  # noqa: ARG002
        return self.builder.to_bfloat16(x)

    def _conv(self, layer: kinds.Conv, x: Value, second: Value | None) -> Value:
        return self.builder.conv(
            x, layer.weight, self._bias(layer), stride=square(layer.stride), padding=layer.padding,
            dilation=square(layer.dilation), activation=layer.activation, gate=self._space(layer.name),
            residual=second,
        )  # fmt: skip


class Bfloat16Path(KernelPath):
    """Runs convolutions on bfloat16, with sums of 32 bits; everything else, and all decisions, in float32.

    Grouped and depthwise convolutions and linear layers stay in float32.

    Args:
        program: The network, float32 on the CPU.
        policy: Decides gate by gate in the kernel; None: masks are given.
        variant: Variant of the kernel; None for the best.

    Raises:
        UnsupportedError: If the kernel is not available.
    """

    name = "bfloat16"
    measured = False
    rounds = True
    shared_from = 1e8  # layers take less time, so threads wait for longer: ResNet-20 is faster on one

    def __init__(self, program: kinds.Program, policy: GatePolicy | None = None, variant: str | None = None) -> None:
        super().__init__(program, policy, variant, _Bfloat16Translation)
