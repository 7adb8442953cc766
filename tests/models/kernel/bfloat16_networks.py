"""Random networks on bfloat16 through the kernel, and each layer by torch in float64, from the kernel's own inputs.

.ci/kernel_sanitize runs many of them: python -m tests.models.kernel.bfloat16_networks COUNT
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prunegym.models.kernel import PlanBuilder, Value, bfloat16_variants
from prunegym.models.kernel.shared_library import ACTIVATIONS
from tests.models.kernel.test_kernel_operators import FUNCTIONS

Step = Callable[[list[Tensor], list[Tensor]], tuple[Tensor, Tensor]]
"""A layer in torch: from the values before it and the mask of each gate, what it makes, in float64 and not yet rounded,
and the sum of the sizes of all summands."""


class Bfloat16Network:
    """A network of random layers on bfloat16, drawn layer by layer for the kernel and for torch.

    Args:
        seed: Of its shape, weights, images and masks.
    """

    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        self.random = torch.Generator().manual_seed(seed)
        side = draw.choice([2, 8, 20, 36])
        self.shape = draw.choice([1, 2, 3, 5]), draw.randint(1, side), draw.randint(1, side)
        self.wide = draw.random() < 0.2
        self.widths = [self.channels() for _ in range(draw.randint(0, 3))]
        self.builder = PlanBuilder(*self.shape, self.widths)
        self.gates, self.begun = list(range(len(self.widths))), list[int]()
        self.values = [self.builder.to_bfloat16(self.builder.images)]
        self.steps: list[Step] = []
        for _ in range(draw.randint(1, 6)):
            draw.choice([self.conv, self.conv, self.conv, self.pool, self.subsample])()
        while self.gates:
            self.conv(gate=True)

    def channels(self) -> int:
        return self.draw.randint(*((60, 140) if self.wide else (1, 40)))

    def normal(self, *sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=self.random)

    def a_map(self) -> tuple[int, Value]:
        index = self.draw.randrange(max(0, len(self.values) - 3), len(self.values))
        return index, self.values[index]

    def conv(self, *, gate: bool = False) -> None:
        draw, (index, x) = self.draw, self.a_map()
        sides = (draw.choice([1, 2, 3, 5]), draw.choice([1, 3, 4, 7])) if draw.random() < 0.3 else (3, 3)
        pads, dilation = (draw.randint(0, 3), draw.randint(0, 3)), draw.choice([1, 1, 2])
        stride = draw.choice([1, 1, 2, 3])
        reach = [(side - 1) * dilation + 1 for side in sides]
        if draw.random() < 0.5 or any(s + 2 * p < r for s, p, r in zip((x.height, x.width), pads, reach, strict=True)):
            sides, pads, dilation, stride = (3, 3), (1, 1), 1, 1
        on = self.gates.pop(0) if self.gates and (gate or draw.random() < 0.5) else None
        out = self.channels() if on is None else self.widths[on]
        weight = self.normal(out, x.channels, *sides) / (x.channels * sides[0] * sides[1]) ** 0.5
        bias = self.normal(out)
        chosen = draw.sample(self.begun, draw.randint(1, len(self.begun))) if self.begun and draw.random() < 0.3 else []
        bits = [sum(self.widths[:g]) + bit for g in chosen for bit in range(self.widths[g])]
        table = self.normal(len(bits), out) / 8
        biases = self.builder.compensate(bias, table, self.builder.space(bits)) if chosen else bias
        activation = draw.choice(["", "relu", "relu", *ACTIVATIONS])
        kinds = {"stride": stride, "dilation": dilation}
        made = F.conv2d(torch.zeros(1, 1, x.height, x.width), torch.zeros(1, 1, *sides), padding=pads, **kinds).shape
        wanted = (out, *made[2:], on)
        same = [i for i, v in enumerate(self.values) if (v.channels, v.height, v.width, v.gate) == wanted]
        residual = draw.choice(same) if same else None
        y = self.builder.conv(
            x, weight, biases, padding=pads, activation=activation, gate=on,
            residual=None if residual is None else self.values[residual], **kinds,
        )  # fmt: skip
        if on is not None:
            self.begun.append(on)
        rounded = weight.bfloat16().double()

        def step(values: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
            added = bias.double().expand(len(values[0]), -1)
            if chosen:
                added = added + (1 - torch.cat([masks[g] for g in chosen], 1)) @ table.double()
            second = 0 if residual is None else values[residual]
            sums = F.conv2d(values[index], rounded, padding=pads, **kinds) + added[:, :, None, None] + second
            sizes = F.conv2d(values[index].abs(), rounded.abs(), padding=pads, **kinds) + added.abs()[:, :, None, None]
            return FUNCTIONS[activation](sums), sizes + abs(second)

        self.add(y, step)

    def pool(self) -> None:
        draw, (index, x) = self.draw, self.a_map()
        kernel = draw.choice([1, 2, 2, 3, 5])
        stride, padding, ceil = draw.choice([1, 2, 2, 3]), draw.randint(0, kernel // 2), draw.random() < 0.3
        if min(x.height, x.width) + 2 * padding < kernel:
            return
        relu = draw.random() < 0.5
        y = self.builder.max_pool(x, kernel, stride, padding, ceil_mode=ceil, relu=relu)

        def step(values: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
            made = F.max_pool2d(values[index], kernel, stride, padding, 1, ceil)
            made = F.relu(made) if relu else made
            return made, torch.zeros_like(made)

        self.add(y, step)

    def subsample(self) -> None:
        index, x = self.a_map()
        if x.gate is not None or x.channels % 2:
            return
        stride, offset = self.draw.choice([1, 2, 2, 3]), 2 * self.draw.randint(0, 2)
        channels = x.channels + offset + self.draw.randint(0, 5)
        y = self.builder.subsample(x, stride, channels, offset)

        def step(values: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
            part = values[index][:, :, ::stride, ::stride]
            made = F.pad(part, (0, 0, 0, 0, offset, channels - offset - x.channels))
            return made, torch.zeros_like(made)

        self.add(y, step)

    def add(self, value: Value, step: Step) -> None:
        self.values.append(value)
        self.steps.append(step)

    def check(self, variants: Sequence[str], batch: int = 3) -> None:
        """Compare each layer with torch's; on one thread and on two in turn.

        A number may be off by half of a rounding step, and as much as float32's sums may be.
        """
        images = self.normal(batch, *self.shape)
        masks = torch.rand(batch, sum(self.widths), generator=self.random) < torch.rand(1, generator=self.random)
        parts = [part.double() for part in masks.split(self.widths, 1)] if self.widths else []
        outputs = [self.builder.to_floats(value) for value in self.values]
        for place, variant in enumerate(variants):
            plan = self.builder.build(outputs, bfloat16_variant=variant)
            plan(torch.full_like(images, torch.nan), masks, 1 + place % 2)  # what it leaves in memory must not be read
            found, _ = plan(images, masks, 1 + place % 2)
            values, start = list[Tensor](), 0
            for y in self.values:
                shape = y.channels, y.height, y.width
                size = y.channels * y.height * y.width
                values.append(found[:, start : start + size].double().reshape(-1, *shape))
                start += size
            assert torch.equal(values[0], images.bfloat16().double())
            for index, (step, y) in enumerate(zip(self.steps, self.values[1:], strict=True), 1):
                wanted, sizes = step(values[:index], parts)
                there = torch.ones(()) if y.gate is None else parts[y.gate][:, :, None, None]
                error = (values[index] - wanted * there).abs()
                allowed = (wanted.abs() * 2.0**-8 + (sizes + (sizes > 0)) * 2e-6) * there
                assert (error <= allowed).all(), f"{variant}: value {index} of {len(values)}, {y}: {error.max()}"


def main() -> None:
    """Check as many networks as the command line says, each on all variants."""
    for seed in range(int(sys.argv[1])):
        try:
            Bfloat16Network(seed).check(bfloat16_variants(), batch=1 + seed % 3)
        except Exception as error:
            raise AssertionError(f"network {seed}") from error
    print(f"{sys.argv[1]} networks on bfloat16 equal torch's up to rounding, on {', '.join(bfloat16_variants())}.")


if __name__ == "__main__":
    main()
