"""Running a program at full width as torch's own traced graph."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from prunegym.models.gate_policy import GatePolicy
from prunegym.models.skipping.full_path import FullPath, by_groups
from prunegym.models.skipping.lowering import UnsupportedError
from prunegym.models.skipping.paths import Executed
from prunegym.models.skipping.program import Program

TRACES = 8
"""Traces that are kept: two for each lambda, one of them for single images."""


class TracedPath:
    """:class:`FullPath`, channels last, traced and frozen by torch, so that no Python runs between the layers.

    Args:
        program: The network.
        policy: Decides gate by gate; None: masks are given.

    Raises:
        UnsupportedError: If torch cannot trace the network.
    """

    def __init__(self, program: Program, policy: GatePolicy | None = None) -> None:
        self._full = FullPath(program, policy, channels_last=True, pack=False)
        self._traced = functools.lru_cache(TRACES)(self._trace)
        try:
            self._traced(policy is None, None, True)
        except Exception as error:  # the tracer raises about anything, of its own and from the layers that it calls
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UnsupportedError(f"torch cannot trace the network: {reason}") from error

    def run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """See :class:`prunegym.models.skipping.paths.Path`."""
        return by_groups(self._full.program, lambda some, bits: self._run(some, bits, penalty), images, mask)

    def _run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        # One image is masked by biases, which the trace of it has for good; more images are multiplied.
        single = len(images) == 1
        if mask is None:
            return Executed(*self._traced(False, penalty, single)(images))
        return Executed(*self._traced(True, None, single)(images, mask))

    def _trace(self, given: bool, penalty: float | None, single: bool) -> Callable[..., tuple[Tensor, Tensor]]:
        program, batch = self._full.program, 1 if single else 2
        images = torch.zeros(batch, *program.shapes[program.input]).to(next(iter(self._full.weights.values())))
        mask = torch.ones(batch, sum(program.widths), dtype=torch.bool, device=images.device)
        example = (images, mask) if given else (images,)
        if not given:
            self._full.deciding.heads(penalty)  # folded here, the trace has them as constants
        with warnings.catch_warnings():  # torch calls its tracer deprecated; it is still the fastest on small networks
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(_Traceable(self._full, penalty).eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
            # Without the hooks of a module's own call, which take some microseconds.
            frozen = cast("Callable[..., tuple[Tensor, Tensor]]", torch.jit.freeze(traced).forward)
            for _ in range(2):  # torch optimises it in the first calls
                frozen(*example)
        return frozen


class _Traceable(nn.Module):
    """A path as the module that torch's tracer wants."""

    def __init__(self, path: FullPath, penalty: float | None) -> None:
        super().__init__()
        self._path, self._penalty = path, penalty

    def forward(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        done = self._path.run_together(images, mask, self._penalty)
        return done.output, done.mask
