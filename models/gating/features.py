"""Inputs of a gate policy: cheap features of what a gate's producer reads."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.models.data.dataset import Dataset
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.validation import whole_number

CLIP = 10.0
"""Standardised features are clipped to +-CLIP."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """One choice of mask bits, for one gate or for all at once.

    Attributes:
        gates: Indices of the gates whose bits are chosen. Features come from the input of the first one's producer.
        width: Number of bits.
    """

    gates: tuple[int, ...]
    width: int


def decisions_of(masked: MaskedCNN, layerwise: bool) -> tuple[Decision, ...]:
    """Return one decision for each gate, or (``layerwise`` False) one for all gates, made at the first."""
    if layerwise:
        return tuple(Decision((index,), gate.width) for index, gate in enumerate(masked.gates))
    return (Decision(tuple(range(len(masked.gates))), masked.mask_size),)


class MaskFeatures(nn.Module):
    """Average and coarse grid of each channel that a gate's producer reads, standardised and clipped to +-10.

    The grid has as many cells as fit into ``feature_size`` numbers; there is none if the averages alone fill them.
    Features cost no MACs, since pooling is not counted.

    Args:
        masked: The CNN whose gates are decided.
        layerwise: One decision for each gate, or one for all.
        grid: Cells along each side of the grid.
        feature_size: Largest number of features of a decision.

    Attributes:
        decisions: See :func:`decisions_of`.
        sizes: Number of features of each decision.
    """

    def __init__(self, masked: MaskedCNN, layerwise: bool = True, grid: int = 4, feature_size: int = 1088) -> None:
        super().__init__()
        whole_number("grid", grid)
        whole_number("feature_size", feature_size)
        self.config = {"layerwise": layerwise, "grid": grid, "feature_size": feature_size}
        self.decisions = decisions_of(masked, layerwise)
        self.feature_size = feature_size
        self._grids: list[int] = []
        self._pools: list[bool] = []
        self.sizes: list[int] = []
        for index, decision in enumerate(self.decisions):
            producer = masked.graph[masked.gates[decision.gates[0]].producers[0]]
            channels, height, width = masked.graph[producer.inputs[0]].shape[1:]
            cells = min(grid, height, width)
            while cells > 1 and channels * (1 + cells**2) > feature_size:
                cells -= 1
            self._grids.append(cells if cells > 1 else 0)
            self._pools.append(channels > feature_size)
            self.sizes.append(min(channels, feature_size) + channels * self._grids[-1] ** 2)
            self.register_buffer(f"mean{index}", torch.zeros(self.sizes[-1]))
            self.register_buffer(f"std{index}", torch.ones(self.sizes[-1]))

    def grid_of(self, decision: int) -> int:
        """Return the cells along each side of a decision's grid, 0 for none."""
        return self._grids[decision]

    def pools_channels(self, decision: int) -> bool:
        """Whether a decision's features are averages of adjacent channels, as there are too many channels."""
        return self._pools[decision]

    def raw(self, decision: int, reads: Tensor) -> Tensor:
        """Return features before standardisation: (batch, channels, height, width) -> (batch, sizes[decision])."""
        cells = self._grids[decision]
        if cells:
            even = reads.shape[2] % cells == 0 and reads.shape[3] % cells == 0
            grid = (
                _grid(reads, cells) if even and torch.compiler.is_compiling() else F.adaptive_avg_pool2d(reads, cells)
            )
            average = (grid if even else reads).mean((2, 3))  # of equal cells: the mean of the pixels
            return torch.cat([average, grid.flatten(1)], dim=1)
        average = reads.mean((2, 3))
        return F.adaptive_avg_pool1d(average[:, None], self.feature_size)[:, 0] if self._pools[decision] else average

    def forward(self, decision: int, reads: Tensor) -> Tensor:
        """Return the features of a decision.

        Args:
            decision: Index of the decision.
            reads: What the producer of its first gate reads, (batch, channels, height, width).

        Returns:
            (batch, sizes[decision]) float32 in [-10, 10].
        """
        # Standardised with statistics of training images: (x - mean) / std, clipped.
        mean, std = self.get_buffer(f"mean{decision}"), self.get_buffer(f"std{decision}")
        return ((self.raw(decision, reads).float() - mean) / std).clamp(-CLIP, CLIP)

    @torch.no_grad()
    def calibrate(self, masked: MaskedCNN, dataset: Dataset, images: int = 1024) -> MaskFeatures:
        """Set mean and standard deviation from training images with all channels on. Returns itself, moved to the CNN.

        Args:
            masked: The CNN.
            dataset: Images of the training split.
            images: How many of them, drawn with a fixed seed.
        """
        self.to(masked.device)
        for index, values in enumerate(self._seen(masked, dataset.sample(images))):
            self.get_buffer(f"mean{index}").copy_(values.mean(0))
            # A constant feature, as at the dark edge of digits, would be divided by zero.
            deviation = values.std(0, unbiased=False)
            self.get_buffer(f"std{index}").copy_(torch.where(deviation > 1e-4, deviation, torch.ones_like(deviation)))
        return self

    def _seen(self, masked: MaskedCNN, sample: Dataset) -> list[Tensor]:
        """Return the raw features of images with all channels on: for each decision (images, features) float32."""
        rows: list[list[Tensor]] = [[] for _ in self.decisions]
        starts = {decision.gates[0]: index for index, decision in enumerate(self.decisions)}
        for _, images in sample.batches(256, device=self.get_buffer("mean0").device):
            state = masked.begin(images)
            while state.reads is not None:
                index = starts.get(state.gate)
                if index is not None:
                    rows[index].append(self.raw(index, state.reads))
                masked.advance(state, None)
        return [torch.cat(parts).float() for parts in rows]


def _grid(reads: Tensor, cells: int) -> Tensor:
    """Average over cells of equal size, in a form that torch.compile fuses, unlike a call to pooling."""
    batch, channels, height, width = reads.shape
    return reads.reshape(batch, channels, cells, height // cells, cells, width // cells).mean((3, 5))
