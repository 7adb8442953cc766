"""Execution of a program, and of a policy gate by gate, in the compiled kernel."""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.skipping.layer_translation import Translation
from prunegym.models.skipping.program.layers import Conv, Program
from prunegym.models.skipping.program.path import Clock, Executed, ExecutionPath
from prunegym.models.skipping.torch_paths.torch_layers import FullPath
from prunegym.models.skipping.translation import Translated, TranslationFactory, segments, translate_part

KEPT_PLANS = 5


class KernelPath(ExecutionPath):
    """Runs a program in the compiled kernel; masked channels are not computed.

    What the kernel does not know runs in torch with every channel, between the parts that it runs.

    Args:
        program: The network, float32 on the CPU.
        policy: Decides gate by gate in the kernel; None: masks are given.
        variant: Variant of the kernel; None for the best.
        translation: See :func:`prunegym.models.skipping.translation.translate_part`.

    Attributes:
        segments: The parts, in order.
        shared_from: From these MACs on, threads share a single image. They wait for each other after each layer, which
            takes time.

    Raises:
        UnsupportedError: If the kernel is not available or has no layer with weights, or no such features.
    """

    name = "kernel"
    skips = True
    own_clock = True
    shared_from: ClassVar[float] = 1e6

    def __init__(
        self,
        program: Program,
        policy: GatePolicy | None = None,
        variant: str | None = None,
        translation: TranslationFactory = Translation,
    ) -> None:
        super().__init__(program, policy)
        self.segments = parts = segments(program, policy)
        self._torch = None if len(parts) == 1 else FullPath(program, policy)
        convolutions = (layer for part in parts if part.in_kernel for layer in part.layers if isinstance(layer, Conv))
        macs = sum(layer.weight.numel() * math.prod(program.shapes[layer.name][1:]) for layer in convolutions)
        self._shared = macs >= self.shared_from

        # A policy for a range of lambdas has each one folded into its biases, so each has its plans; few are kept.
        # No reference to this object: it would keep the plans in memory until garbage is collected.
        @functools.lru_cache(KEPT_PLANS)
        def plans(decides: bool, penalty: float | None) -> list[Translated | None]:
            inside = policy if decides else None
            return [
                translate_part(program, part, inside, penalty, variant, translation=translation)
                if part.in_kernel
                else None
                for part in parts
            ]

        self._plans = plans
        self._plans(policy is not None, None)

    @property
    def label(self) -> str:
        """The name, and the variant of the kernel."""
        first = next(found for found in self._plans(self.policy is not None, None) if found is not None)
        return f"{self.name}, {first.plan.variant}"

    def run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """See :class:`~prunegym.models.skipping.program.path.ExecutionPath`."""
        threads = None if self._shared or len(images) > 1 else 1
        if self._torch is None:
            (found,) = self._plans(mask is None, penalty if mask is None else None)
            assert found is not None
            outputs, used = found.plan(images, mask, threads)
            return Executed(outputs.view(len(images), *self.program.output_shape), used)
        return self._run(images, mask, penalty, threads, None)

    def timed(
        self,
        images: Tensor,
        mask: Tensor | None,
        penalty: float | None = None,
        clock: Clock = time.perf_counter,  # noqa: ARG002
    ) -> dict[str, float]:
        """See :class:`~prunegym.models.skipping.program.path.ExecutionPath`; several images run on one thread."""
        threads = torch.get_num_threads() if self._shared and len(images) == 1 else 1
        seconds: defaultdict[str, float] = defaultdict(float)
        self._run(images, mask, penalty, threads, seconds)
        return dict(seconds)

    def _run(
        self,
        images: Tensor,
        mask: Tensor | None,
        penalty: float | None,
        threads: int | None,
        seconds: defaultdict[str, float] | None,
    ) -> Executed:
        """Run part by part, and add the seconds of each layer to ``seconds`` if it is given."""
        program, batch = self.program, len(images)
        used = torch.zeros(batch, sum(program.widths), dtype=torch.bool) if mask is None else mask
        full = None if self._torch is None else self._torch.begin(images, mask, penalty)
        values: dict[str, Any] = {program.input: images} if full is None else full.values
        for part, found in zip(
            self.segments, self._plans(mask is None, penalty if mask is None else None), strict=True
        ):
            if found is None:
                assert full is not None
                for layer in part.layers:
                    start = time.perf_counter()
                    full.run(layer)
                    if seconds is not None:
                        seconds[layer.name] += time.perf_counter() - start
                continue
            plan = found.plan
            given = [values[name].reshape(batch, *shape) for name, shape in zip(part.reads, plan.inputs, strict=True)]
            if full is not None and mask is None:
                used = full.used(used)
            if seconds is not None:
                for name, time_of in zip(found.parts, plan.timed(given, used, threads or 1).values(), strict=True):
                    seconds[name] += time_of
                if part is self.segments[-1]:
                    return Executed(torch.empty(0), used)  # the output is not wanted
            outputs, used = plan(given, used, threads)
            sizes = [math.prod(program.shapes[name]) for name in part.makes]
            for name, value in zip(part.makes, torch.split(outputs, sizes, 1), strict=True):
                values[name] = value.view(batch, *program.shapes[name])
            if full is not None and mask is None:
                full.learn(used, [gate for layer in part.layers for gate in layer.starts])
        if full is not None and mask is None:
            used = full.used(used)
        return Executed(program.shaped(values[program.output]), used)
