"""Running a program at full width as a graph that torch makes of it: traced, or compiled to C++."""

from __future__ import annotations

import abc
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor

from prunegym.models.ahead_of_time import FunctionModule, compile_ahead
from prunegym.models.gate_policy import GatePolicy
from prunegym.models.skipping.full_path import FullPath, by_groups
from prunegym.models.skipping.lowering import UnsupportedError
from prunegym.models.skipping.paths import Executed
from prunegym.models.skipping.program import Conv, Program

GRAPHS = 8
"""Graphs that are kept, for a lambda and a number of images each."""
Graph = Callable[..., Sequence[Tensor]]
"""From images and, if they are given, masks to the network's output and the masks that were used."""


class GraphPath(abc.ABC):
    """:class:`FullPath`, channels last, as one graph, so that no Python runs between the layers.

    Args:
        program: The network.
        policy: Decides gate by gate; None: masks are given.

    Raises:
        UnsupportedError: If torch cannot make the graph.
    """

    VERB: ClassVar[str]

    def __init__(self, program: Program, policy: GatePolicy | None = None) -> None:
        self._full = FullPath(program, policy, channels_last=True, pack=False)
        self._graphs = functools.lru_cache(GRAPHS)(self._make)
        try:
            self._graphs(policy is None, None, *self._key(1))
        except Exception as error:  # torch raises about anything here, of its own and from the layers that it calls
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UnsupportedError(f"torch cannot {self.VERB} the network: {reason}") from error

    @abc.abstractmethod
    def _key(self, images: int) -> tuple[int, int]:
        """Return the number of images that a graph for so many is made with, and of threads."""

    @abc.abstractmethod
    def _graph(self, run: Graph, example: tuple[Tensor, ...]) -> Graph:
        """Make a graph of a function of images and, if they are given, masks."""

    def run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        """See :class:`prunegym.models.skipping.paths.Path`."""
        return by_groups(self._full.program, lambda some, bits: self._run(some, bits, penalty), images, mask)

    def _run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        size, threads = self._key(len(images))
        images = images.contiguous(memory_format=torch.channels_last)  # as the graph knows them
        if mask is None:
            return Executed(*self._graphs(False, penalty, size, threads)(images))
        return Executed(*self._graphs(True, None, size, threads)(images, mask.contiguous()))

    def _make(self, given: bool, penalty: float | None, size: int, _threads: int) -> Graph:
        program = self._full.program
        like = next(layer.weight for layer in program.layers if isinstance(layer, Conv))
        images = like.new_zeros(size, *program.shapes[program.input])
        images = images.contiguous(memory_format=torch.channels_last)
        mask = torch.ones(size, sum(program.widths), dtype=torch.bool, device=images.device)
        if not given:
            self._full.deciding.heads(penalty)  # folded here, the graph has them as constants

        def run(*values: Tensor) -> tuple[Tensor, Tensor]:
            done = self._full.run_together(values[0], values[1] if given else None, penalty)
            return done.output, done.mask

        example = (images, mask) if given else (images,)
        with warnings.catch_warnings():  # torch calls its tracer deprecated; it is still the fastest on small networks
            warnings.simplefilter("ignore")
            graph = self._graph(run, example)
            for _ in range(2):  # torch optimises it in the first calls
                graph(*example)
        return graph


class TracedPath(GraphPath):
    """A graph traced and frozen by torch: one for single images, which are masked by biases, one for more."""

    VERB = "trace"

    def _key(self, images: int) -> tuple[int, int]:
        return min(images, 2), 0

    def _graph(self, run: Graph, example: tuple[Tensor, ...]) -> Graph:
        traced = torch.jit.trace(FunctionModule(run).eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
        # Without the hooks of a module's own call, which take some microseconds.
        return cast("Graph", torch.jit.freeze(traced).forward)


class CompiledPath(GraphPath):
    """A graph compiled to C++ ahead of time, for each number of images and of threads anew: some ten seconds each."""

    VERB = "compile"

    def _key(self, images: int) -> tuple[int, int]:
        return images, torch.get_num_threads()  # both are constants of the compiled code

    def _graph(self, run: Graph, example: tuple[Tensor, ...]) -> Graph:
        return compile_ahead(run, example)
