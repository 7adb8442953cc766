"""Random networks on bytes through the kernel, and the same integer arithmetic in numpy, bit for bit.

.ci/kernel_sanitize runs many of them: python -m tests.models.kernel.byte_networks COUNT
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from prunegym.models.kernel import PlanBuilder, Value
from prunegym.models.kernel.shared_library import byte_variants

Bytes = NDArray[np.int64]
Floats = NDArray[np.float32]
Step = Callable[[list[Bytes], list[Floats]], Bytes]
"""A layer in numpy: from the values before it and the mask of each gate."""
f32 = np.float32


def rounded(values: Floats) -> Bytes:
    """Floats as bytes: the nearest, ties to even, from 0 to 255."""
    return np.rint(np.clip(values, f32(0), f32(255))).astype(np.int64)


def products(q: Bytes, codes: Bytes, pads: tuple[int, int], fill: int, **options: Any) -> Bytes:
    """Sums of codes times bytes, where the padding is the byte ``fill``; exact, for float64 holds such integers."""
    down, right = pads
    padded = np.pad(q, ((0, 0), (0, 0), (down, down), (right, right)), constant_values=fill)
    made = F.conv2d(torch.from_numpy(padded).double(), torch.from_numpy(codes).double(), **options)
    return made.numpy().astype(np.int64)


class ByteNetwork:
    """A network of random layers on bytes, drawn layer by layer for the kernel and for numpy.

    Args:
        seed: Of its shape, weights, images and masks.
    """

    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        self.random = np.random.default_rng(seed)
        side = draw.choice([2, 8, 20, 36])
        self.shape = draw.choice([1, 3, 4, 7]), draw.randint(1, side), draw.randint(1, side)
        self.wide = draw.random() < 0.2
        self.widths = [self.channels() for _ in range(draw.randint(0, 3))]
        self.builder = PlanBuilder(*self.shape, self.widths)
        self.gates = list(range(len(self.widths)))
        self.begun: list[int] = []
        scale, signed = self.scale(), draw.random() < 0.5
        self.values = [self.builder.to_bytes(self.builder.images, scale, signed)]
        self.steps: list[Step] = []
        self.first = (f32(1) / f32(scale), f32(128 if signed else 0))
        for _ in range(draw.randint(1, 6)):
            draw.choice([self.conv, self.conv, self.conv, self.pool, self.subsample])()
        while self.gates:
            self.conv(gate=True)

    def channels(self) -> int:
        return self.draw.randint(*((90, 140) if self.wide else (1, 40)))

    def scale(self) -> float:
        return self.draw.uniform(0.01, 0.05)

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
        codes = self.random.integers(-127, 128, (out, x.channels, *sides))
        # So that outputs fill about a third of the bytes.
        typical = 74.0 * 74 * (x.channels * sides[0] * sides[1]) ** 0.5
        scales = (self.random.uniform(0.5, 2, out) / typical).astype(f32)
        bias = self.random.integers(-3, 4, out).astype(f32) / f32(4)
        chosen = draw.sample(self.begun, draw.randint(1, len(self.begun))) if self.begun and draw.random() < 0.3 else []
        bits = [sum(self.widths[:g]) + bit for g in chosen for bit in range(self.widths[g])]
        table = self.random.integers(-2, 3, (len(bits), out)).astype(f32) / f32(64)  # sums of these are exact
        biases: Tensor | Value = torch.from_numpy(bias)
        if chosen:
            biases = self.builder.compensate(biases, torch.from_numpy(table), self.builder.space(bits))
        activation = draw.choice(["", "relu", "relu", "relu6"])
        signed, scale = activation == "", 1 / 80
        kinds = {"stride": stride, "dilation": dilation}
        made = F.conv2d(torch.zeros(1, 1, x.height, x.width), torch.zeros(1, 1, *sides), padding=pads, **kinds).shape
        wanted = (out, *made[2:], on)
        same = [i for i, v in enumerate(self.values) if (v.channels, v.height, v.width, v.gate) == wanted]
        residual = draw.choice(same) if same else None
        second = None if residual is None else self.values[residual]
        y = self.builder.byte_conv(
            x, torch.from_numpy(codes).to(torch.int8), torch.from_numpy(scales), biases, scale=scale, signed=signed,
            padding=pads, activation=activation, gate=on, residual=second, **kinds,
        )  # fmt: skip
        if on is not None:
            self.begun.append(on)
        # (codes' scale x input's / output's), in double as the builder does it.
        factor = (scales.astype(np.float64) * x.scale / scale).astype(f32)[:, None, None]
        unit, zero, share = f32(1) / f32(scale), f32(y.zero), f32(0)
        offset = zero
        if second is not None:
            share = f32(second.scale) / f32(scale)
            offset = zero - f32(second.zero) * share
        low, high = (zero if activation else f32(-1e6)), (f32(6) * unit + zero if activation == "relu6" else f32(1e6))

        def step(values: list[Bytes], masks: list[Floats]) -> Bytes:
            kept = np.ones((len(values[index]), x.channels)) if x.gate is None else masks[x.gate]
            # Masked channels of the input are not there at all.
            q = np.where(kept[:, :, None, None] > 0, values[index], 0)
            pieces = []
            for image, there in zip(q, kept > 0, strict=True):
                own = np.where(there[:, None, None], codes, 0)
                sums = products(image[None], own, pads, x.zero, **kinds)[0]
                zeros = (x.zero * own.sum((1, 2, 3))).astype(f32) * factor[:, 0, 0]
                pieces.append((sums.astype(f32), zeros))
            added = (
                bias if not chosen else bias + (1 - np.concatenate([masks[g] for g in chosen], 1)).astype(f32) @ table
            )
            added = np.broadcast_to(added.astype(f32) * unit, (len(q), out))
            results = []
            for n, (sums, zeros) in enumerate(pieces):
                v = sums * factor + ((added[n] - zeros) + offset)[:, None, None]
                if residual is not None:
                    v = v + values[residual][n].astype(f32) * share
                results.append(rounded(np.clip(v, low, high)))
            return np.stack(results)

        self.add(y, step)

    def pool(self) -> None:
        draw, (index, x) = self.draw, self.a_map()
        kernel = draw.choice([1, 2, 2, 3, 5])
        stride, padding, ceil = draw.choice([1, 2, 2, 3]), draw.randint(0, kernel // 2), draw.random() < 0.3
        if min(x.height, x.width) + 2 * padding < kernel:
            return
        y = self.builder.max_pool(x, kernel, stride, padding, ceil_mode=ceil, relu=x.zero == 0)

        def step(values: list[Bytes], masks: list[Floats]) -> Bytes:
            made = F.max_pool2d(torch.from_numpy(values[index]).double(), kernel, stride, padding, 1, ceil)
            return made.numpy().astype(np.int64)

        self.add(y, step)

    def subsample(self) -> None:
        index, x = self.a_map()
        if x.gate is not None or x.channels % 4:
            return
        stride, offset = self.draw.choice([1, 2, 2, 3]), 4 * self.draw.randint(0, 2)
        channels = x.channels + offset + self.draw.randint(0, 5)
        y = self.builder.subsample(x, stride, channels, offset)

        def step(values: list[Bytes], masks: list[Floats]) -> Bytes:
            part = values[index][:, :, ::stride, ::stride]
            made = np.full((len(part), channels, *part.shape[2:]), x.zero)
            made[:, offset : offset + x.channels] = part
            return made

        self.add(y, step)

    def add(self, value: Value, step: Step) -> None:
        self.values.append(value)
        self.steps.append(step)

    def check(self, variants: Sequence[str], batch: int = 3) -> None:
        """Compare all values with numpy's, bit for bit; on one thread and on two in turn."""
        images = self.random.normal(size=(batch, *self.shape)).astype(f32)
        masks = self.random.random((batch, sum(self.widths))) < self.random.random((batch, 1))
        parts = [part.astype(f32) for part in np.split(masks, np.cumsum(self.widths)[:-1], 1)] if self.widths else []
        values = [rounded(images * self.first[0] + self.first[1])]
        for step in self.steps:
            values.append(step(values, parts))
        wanted = []
        for value, y in zip(values, self.values, strict=True):
            meant = (value.astype(f32) - f32(y.zero)) * f32(y.scale)
            wanted.append(meant if y.gate is None else meant * parts[y.gate][:, :, None, None])
        outputs = [self.builder.to_floats(value) for value in self.values]
        for place, variant in enumerate(variants):
            plan = self.builder.build(outputs, byte_variant=variant)
            found, _ = plan(torch.from_numpy(images), torch.from_numpy(masks), 1 + place % 2)
            start = 0
            for index, meant in enumerate(wanted):
                size = meant[0].size
                got = found[:, start : start + size].numpy().reshape(meant.shape)
                message = f"{variant}: value {index} of {len(wanted)}, {self.values[index]}"
                np.testing.assert_array_equal(got, meant, message)
                start += size


def main() -> None:
    """Check as many networks as the command line says, each on all variants."""
    for seed in range(int(sys.argv[1])):
        try:
            ByteNetwork(seed).check(byte_variants(), batch=1 + seed % 3)
        except Exception as error:
            raise AssertionError(f"network {seed}") from error
    print(f"{sys.argv[1]} networks on bytes equal numpy's bit for bit, on {', '.join(byte_variants())}.")


if __name__ == "__main__":
    main()
