"""The kinds of features of gates, one class for each: in torch, in ONNX and in the compiled kernel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from prunegym.errors import InvalidInputError


class OnnxWriter(Protocol):
    """The part of :class:`prunegym.models.export.onnx_graph.GraphBuilder` that features use."""

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> str:
        """Add a node of this kind and return the name of its output."""

    def adaptive_average(self, x: Any, shape: tuple[int, ...], sizes: list[int]) -> Any:
        """Average over cells as ``adaptive_avg_pool2d`` does."""


class Seen:
    """A map from which features are computed; averages over its cells are computed once for all features.

    Args:
        reads: (batch, channels, height, width).
    """

    def __init__(self, reads: Tensor) -> None:
        self.reads = reads
        self._averages: Tensor = reads

    def cells(self, number: int) -> Tensor:
        """Return averages over ``number`` x ``number`` cells: (batch, channels, number, number)."""
        even = self.reads.shape[2] % number == 0 and self.reads.shape[3] % number == 0
        found = F.adaptive_avg_pool2d(self.reads, number)
        if even:
            self._averages = found
        return found

    def average(self) -> Tensor:
        """Return the average of each channel (batch, channels)."""
        # The mean over cells of one size is the mean over pixels, and there are fewer cells.
        return self._averages.mean((2, 3))


class Feature(ABC):
    """One kind of features of a decision. :data:`FEATURES` lists all kinds.

    Attributes:
        name: Its name for users.
        size: Number of features.
        macs: MACs of computing them for one image. Pooling is not counted.
    """

    name: ClassVar[str]
    size: int
    macs = 0

    @classmethod
    @abstractmethod
    def fit(cls, shape: tuple[int, ...], room: int, grid: int) -> Feature | None:
        """Return the feature for a map, or None if there is no room for it.

        Args:
            shape: (channels, height, width) of the map.
            room: Largest number of features.
            grid: Largest number of cells along each side of a grid.
        """

    @abstractmethod
    def raw(self, seen: Seen) -> Tensor:
        """Return the numbers before standardisation, (batch, size)."""

    @abstractmethod
    def onnx(
        self, writer: OnnxWriter, reads: Any, shape: tuple[int, ...], all_channels: Callable[[Any, int], Any]
    ) -> Any:
        """Write :meth:`raw` for one image into an ONNX graph.

        Args:
            writer: The graph.
            reads: The map (1, existing channels, height, width).
            shape: Its shape with all channels.
            all_channels: Takes the features of the existing channels, and the number for each; returns those of all
                channels (channels, numbers), with zeros where a channel is missing.

        Returns:
            ``size`` numbers in the order of :meth:`raw`, in any shape.
        """

    def kernel(self) -> dict[str, int]:
        """Return the arguments of ``GateHead`` and ``PlanBuilder.look`` for this feature in the compiled kernel.

        Raises:
            InvalidInputError: If the kernel cannot.
        """
        raise InvalidInputError(f"The kernel does not support the feature {self.name!r}.")


class Average(Feature):
    """The average of each channel, or of several neighbouring channels if there are too many."""

    name = "average"

    def __init__(self, channels: int, size: int) -> None:
        self.channels, self.size = channels, size

    @classmethod
    def fit(cls, shape: tuple[int, ...], room: int, grid: int) -> Average:  # noqa: ARG003
        """See :class:`Feature`; there is always room."""
        return cls(shape[0], max(min(shape[0], room), 1))

    def raw(self, seen: Seen) -> Tensor:
        """See :class:`Feature`."""
        average = seen.average()
        return average if self.size == self.channels else F.adaptive_avg_pool1d(average[:, None], self.size)[:, 0]

    def onnx(
        self, writer: OnnxWriter, reads: Any, _shape: tuple[int, ...], all_channels: Callable[[Any, int], Any]
    ) -> Any:
        """See :class:`Feature`."""
        average = all_channels(writer.op("GlobalAveragePool", reads), 1)
        if self.size == self.channels:
            return average
        # Adaptive pooling over channels, written as a product with a fixed matrix (size, channels).
        matrix = F.adaptive_avg_pool1d(torch.eye(self.channels), self.size).T.contiguous().numpy()
        return writer.op("MatMul", matrix, average)

    def kernel(self) -> dict[str, int]:
        """See :class:`Feature`."""
        if self.size < self.channels:
            raise InvalidInputError(
                f"The gate sees {self.channels} channels, more than feature_size={self.size}, and the kernel does not "
                "pool channels."
            )
        return {"average": True}


class Grid(Feature):
    """The average of each channel over each cell of a coarse grid, channel by channel."""

    name = "grid"

    def __init__(self, channels: int, cells: int) -> None:
        self.cells, self.size = cells, channels * cells**2

    @classmethod
    def fit(cls, shape: tuple[int, ...], room: int, grid: int) -> Grid | None:
        """See :class:`Feature`; the grid has as many cells as there is room for."""
        cells = min(grid, *shape[1:])
        while cells > 1 and shape[0] * cells**2 > room:
            cells -= 1
        return cls(shape[0], cells) if cells > 1 else None

    def raw(self, seen: Seen) -> Tensor:
        """See :class:`Feature`."""
        return seen.cells(self.cells).flatten(1)

    def onnx(
        self, writer: OnnxWriter, reads: Any, shape: tuple[int, ...], all_channels: Callable[[Any, int], Any]
    ) -> Any:
        """See :class:`Feature`."""
        return all_channels(writer.adaptive_average(reads, shape, [self.cells, self.cells]), self.cells**2)

    def kernel(self) -> dict[str, int]:
        """See :class:`Feature`."""
        return {"grid": self.cells}


FEATURES: dict[str, type[Feature]] = {kind.name: kind for kind in (Average, Grid)}
"""All kinds of features, in the order of their numbers. To add one, write its class and name it here."""
DEFAULT_KINDS = ("average", "grid")
