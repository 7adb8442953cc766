"""Random networks through the kernel, and the same in plain torch.

.ci/kernel_sanitize runs many of them: python -m tests.models.kernel.random_networks COUNT
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunegym.models import kernel
from prunegym.models.kernel import GateHead, Pass, PlanBuilder, Value
from prunegym.models.kernel.shared_library import ACTIVATIONS
from tests.models.kernel.test_kernel_operators import FUNCTIONS
from tests.models.skipping.skipping_networks import close

Step = Callable[[list[Tensor], list[Tensor]], Tensor]
"""A layer in torch: from the values before it and the mask of each gate."""


class RandomNetwork:
    """A network of random layers, drawn layer by layer for the kernel and for torch.

    Its gates are decided by masks, or some by policies, or all by an agent outside who looks before each.

    Args:
        seed: Of its shape, weights, images and masks.
    """

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.draw = draw = random.Random(seed)
        side = draw.choice([4, 12, 20, 33])
        self.shape = draw.choice([1, 2, 3, 5]), draw.randint(1, side), draw.randint(1, side)
        # With many channels and an even side Winograd's algorithm takes some layers.
        self.wide = draw.random() < 0.3
        if self.wide:
            self.shape = 3, 2 * draw.randint(7, 10), 2 * draw.randint(7, 10)
        self.widths = [self.channels() for _ in range(draw.randint(0, 4))]
        self.decides = draw.choice(["masks", "policies", "agent"]) if self.widths else "masks"
        self.builder = PlanBuilder(*self.shape, self.widths)
        self.values, self.steps = [self.builder.images], list[Step]()
        self.gates = list(range(len(self.widths)))
        for _ in range(draw.randint(1, 8)):
            kinds = [self.conv, self.conv, self.conv, self.pool, self.sum, self.subsample]
            draw.choice([*kinds, self.depthwise, self.average, self.concat, self.excite, self.expand])()
        while self.gates:
            self.conv(gate=True)
        self.end()

    def channels(self) -> int:
        return self.draw.randint(*((48, 70) if self.wide else (1, 30)))

    def a_map(self) -> tuple[int, Value]:
        index = self.draw.randrange(max(0, len(self.values) - 3), len(self.values))
        return index, self.values[index]

    def add(self, value: Value, step: Step) -> None:
        self.values.append(value)
        self.steps.append(step)

    def conv(self, *, gate: bool = False) -> None:
        draw, (index, x) = self.draw, self.a_map()
        size, options = self.window(x)
        groups = draw.choice([n for n in (1, 2, 3, 4) if x.channels % n == 0]) if draw.random() < 0.3 else 1
        on = self.gates.pop(0) if self.gates and (gate or draw.random() < 0.6) else None
        out, name = self.channels() if on is None else self.widths[on], draw.choice(ACTIVATIONS)
        groups = groups if out % groups == 0 else 1
        weight = torch.randn(out, x.channels // groups, *size) / (x.channels // groups * size[0] * size[1]) ** 0.5
        bias = torch.randn(out)
        if on is not None:
            self.decision(on, index)
        made = F.conv2d(torch.zeros(1, 1, x.height, x.width), torch.zeros(1, 1, *size), **options)
        wanted = (out, *made.shape[2:], on)
        same = [i for i, v in enumerate(self.values) if (v.channels, v.height, v.width, v.gate) == wanted]
        residual = draw.choice(same) if same else None
        second = None if residual is None else self.values[residual]
        kinds = {**options, "groups": groups}
        begun = len(self.widths) - len(self.gates)
        chosen = draw.sample(range(begun), draw.randint(1, begun)) if begun and draw.random() < 0.3 else []
        table, biases = self.compensation(chosen, bias)
        y = self.builder.conv(x, weight, biases, **kinds, activation=name, gate=on, residual=second)

        def step(values: list[Tensor], masks: list[Tensor]) -> Tensor:
            y = F.conv2d(values[index], weight, bias, **kinds)
            if chosen:
                y = y + ((1 - torch.cat([masks[gate] for gate in chosen], 1)) @ table)[:, :, None, None]
            y = FUNCTIONS[name](y if residual is None else y + values[residual])
            return y if on is None else y * masks[on][:, :, None, None]

        self.add(y, step)

    def compensation(self, gates: list[int], bias: Tensor) -> tuple[Tensor, Tensor | Value]:
        """Return a row of summands for each channel of gates, and the biases that they are added to under masks."""
        table = torch.randn(sum(self.widths[gate] for gate in gates), len(bias))
        bits = [sum(self.widths[:gate]) + bit for gate in gates for bit in range(self.widths[gate])]
        return table, self.builder.compensate(bias, table, self.builder.space(bits)) if gates else bias

    def window(self, x: Value) -> tuple[tuple[int, int], dict[str, Any]]:
        """Return a kernel, and stride, padding and dilation, that fit a map."""
        draw, sides = self.draw, [1, 2, 3, 4, 5, 7]
        size = (draw.choice(sides),) * 2 if draw.random() < 0.7 else (draw.choice(sides), draw.choice(sides))
        padding, dilation = (draw.randint(0, 3), draw.randint(0, 3)), draw.choice([1, 1, 1, 2, 3])
        reach = [(side - 1) * dilation + 1 for side in size]
        fits = all(s + 2 * p >= r for s, p, r in zip((x.height, x.width), padding, reach, strict=True))
        if draw.random() < 0.6 or not fits:
            return (3, 3), {"stride": 1, "padding": (1, 1), "dilation": 1}
        return size, {"stride": draw.choice([1, 1, 2, 3, 5]), "padding": padding, "dilation": dilation}

    def depthwise(self) -> None:
        index, x = self.a_map()
        size, options = self.window(x)
        name, kinds = self.draw.choice(ACTIVATIONS), {**options, "groups": x.channels}
        weight, bias = torch.randn(x.channels, 1, *size) / (size[0] * size[1]) ** 0.5, torch.randn(x.channels)
        y = self.builder.conv(x, weight, bias, **kinds, activation=name, gate=x.gate)
        self.add(y, lambda v, m: FUNCTIONS[name](F.conv2d(v[index], weight, bias, **kinds)) * self.bits(x, m))

    def bits(self, x: Value, masks: list[Tensor]) -> Tensor:
        """Return the factors (batch, channels, 1, 1) of a value's channels."""
        both = torch.cat([*masks, torch.ones(len(masks[0]), 1)], 1) if masks else torch.ones(1, 1)
        return both[:, self.places(x)][:, :, None, None]

    def places(self, x: Value) -> list[int]:
        return self.builder._bits(x.gate, x.channels)

    def average(self) -> None:
        index, x = self.a_map()
        size, stride, ceil = self.draw.choice([1, 2, 3, 4]), self.draw.choice([1, 2, 2, 3]), self.draw.random() < 0.5
        padding, inside = self.draw.randint(0, size // 2), self.draw.random() < 0.5
        if min(x.height, x.width) + 2 * padding >= size:
            y = self.builder.avg_pool(x, size, stride, padding, ceil_mode=ceil, count_include_pad=inside)
            self.add(y, lambda v, _: F.avg_pool2d(v[index], size, stride, padding, ceil, inside))

    def concat(self) -> None:
        _, x = self.a_map()
        same = [i for i, v in enumerate(self.values) if (v.height, v.width) == (x.height, x.width)]
        parts = [self.draw.choice(same) for _ in range(self.draw.randint(1, 3))]
        values, name = [self.values[i] for i in parts], self.draw.choice(ACTIVATIONS)
        places = [place for value in values for place in self.places(value)]
        gate = None if max(places) < 0 else self.builder.space(places)
        scale, shift = torch.rand(len(places)) + 0.5, torch.randn(len(places))
        y = self.builder.concat(values, scale, shift, activation=name, gate=gate)

        def step(values: list[Tensor], masks: list[Tensor]) -> Tensor:
            joined = torch.cat([values[i] for i in parts], 1) * scale[:, None, None] + shift[:, None, None]
            return FUNCTIONS[name](joined) * self.bits(y, masks)

        self.add(y, step)

    def excite(self) -> None:
        index, x = self.a_map()
        size, name = self.draw.randint(1, 20), self.draw.choice(ACTIVATIONS)
        into, out = torch.randn(size, x.channels) / x.channels**0.5, torch.randn(x.channels, size) / size**0.5
        inner = self.builder.linear(self.builder.average(x), into, activation=name)
        y = self.builder.scale(x, self.builder.linear(inner, out, activation="sigmoid", gate=x.gate))

        def step(values: list[Tensor], _: list[Tensor]) -> Tensor:
            factors = FUNCTIONS[name](values[index].mean((2, 3)) @ into.T) @ out.T
            return values[index] * factors.sigmoid()[:, :, None, None]

        self.add(y, step)

    def expand(self) -> None:
        index, x = self.a_map()
        self.add(self.builder.expand(x), lambda v, _: v[index])

    def decision(self, gate: int, index: int) -> None:
        x, average, grid = self.values[index], self.draw.random() < 0.6, self.draw.randint(0, 4)
        average = average or not grid
        size, hidden = x.channels * (average + grid**2), self.draw.randint(1, 20)
        mean, std = torch.randn(size) / 10, torch.rand(size) + 0.1
        if self.decides == "agent":
            self.builder.look(x, mean, std, average=average, grid=grid)
        elif self.decides == "policies" and self.draw.random() < 0.7:
            into, out = torch.randn(hidden, size), torch.randn(self.widths[gate], hidden)
            head = GateHead(mean, std, into, torch.randn(hidden), out, torch.randn(len(out)), average, grid)
            self.builder.decide(gate, x, head)

    def pool(self) -> None:
        index, x = self.a_map()
        size, stride, ceil = (
            self.draw.choice([1, 2, 2, 3, 4, 9]),
            self.draw.choice([1, 2, 2, 3]),
            self.draw.random() < 0.5,
        )
        padding = self.draw.randint(0, size // 2)
        if min(x.height, x.width) + 2 * padding >= size:
            y = self.builder.max_pool(x, size, stride, padding, ceil_mode=ceil, relu=True)
            self.add(y, lambda values, _: F.max_pool2d(values[index], size, stride, padding, 1, ceil).relu())

    def sum(self) -> None:
        index, x = self.a_map()
        shape = x.channels, x.height, x.width, x.gate
        same = [i for i, v in enumerate(self.values) if (v.channels, v.height, v.width, v.gate) == shape]
        other, name = self.draw.choice(same), self.draw.choice(ACTIVATIONS)
        y = self.builder.add(x, self.values[other], activation=name)
        self.add(y, lambda v, m: FUNCTIONS[name](v[index] + v[other]) * self.bits(x, m))

    def subsample(self) -> None:
        index, x = self.a_map()
        stride, before, after = (self.draw.randint(*span) for span in ((1, 3), (0, 5), (0, 5)))
        if x.gate is None:
            y = self.builder.subsample(x, stride, before + x.channels + after, before)
            self.add(y, lambda v, _: F.pad(v[index][:, :, ::stride, ::stride], (0, 0, 0, 0, before, after)))

    def end(self) -> None:
        """Add an average or none, and a linear layer."""
        x, average = self.values[-1], self.draw.random() < 0.5
        y = self.builder.average(x) if average else x
        weight = torch.randn(self.draw.randint(1, 40), y.channels * y.height * y.width)
        self.output = self.builder.linear(y, weight)
        self.last: Callable[[Tensor], Tensor] = lambda v: (v.mean((2, 3)) if average else v.flatten(1)) @ weight.T

    def expected(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return what the network gives, in torch; the mask is known."""
        values, masks = [images], list(mask.float().split(self.widths, 1))
        for step in self.steps:
            values.append(step(values, masks))
        return self.last(values[-1])

    def check(self, variant: str) -> None:
        """Compare the kernel with torch, on one image and several, by one thread and several."""
        plan = self.builder.build(self.output, variant)
        for batch, threads in ((1, 1), (1, 3), (7, 1), (35, 2)):
            images = torch.randn(batch, *self.shape)
            mask = torch.rand(batch, sum(self.widths)) < self.draw.choice([0, 0.3, 0.7, 1])
            plan(torch.full_like(images, torch.nan), mask, threads)  # what it leaves in memory must not be read
            outputs, used = plan(images, mask, threads)
            close(outputs, self.expected(images, used))
            if plan.looks:
                stepwise = Pass(plan, batch)
                stepwise.begin(images, threads)
                for _ in plan.looks:
                    result = stepwise.advance(mask, threads)
                close(result, outputs, 1e-5)


def main() -> None:
    torch.set_num_threads(1)
    count = int(sys.argv[1])
    for seed in range(count):
        for variant in kernel.variants():
            RandomNetwork(seed).check(variant)
    print(f"{count} random networks equal torch in {', '.join(kernel.variants())}")


if __name__ == "__main__":
    main()
