"""Inputs of a gate policy: cheap features of the input of a gate's producer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset
from prunegym.models.gating.feature_kinds import DEFAULT_KINDS, FEATURES, Feature, Seen
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.precision import new_tensors_in
from prunegym.validation import choice, typed, whole_number, yes_or_no

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
    """Features for each decision, from the map that a gate's producer reads, standardised and clipped to +-10.

    By default these are the average and a coarse grid of each channel. The grid has as many cells as fit into
    ``feature_size`` numbers, and none if the averages alone fill it.

    Args:
        masked: The CNN whose gates are decided.
        layerwise: One decision for each gate, or one for all.
        grid: Cells along each side of the grid.
        feature_size: Largest number of features of a decision.
        kinds: Names of :data:`FEATURES`.

    Attributes:
        decisions: See :func:`decisions_of`.
        kinds: The features of each decision.
        sizes: Number of features of each decision.
        macs: MACs of the features of one image.

    Raises:
        UnknownNameError: If a kind is unknown.
        InvalidInputError: If a number is not a whole number of at least 1, or if there are no features.
    """

    @new_tensors_in()
    @typed
    def __init__(
        self,
        masked: MaskedCNN,
        layerwise: bool = True,
        grid: int = 4,
        feature_size: int = 1088,
        kinds: Sequence[str] = DEFAULT_KINDS,
    ) -> None:
        super().__init__()
        yes_or_no("layerwise", layerwise)
        whole_number("grid", grid)
        whole_number("feature_size", feature_size)
        self.config: dict[str, Any] = {"layerwise": layerwise, "grid": grid, "feature_size": feature_size}
        if tuple(kinds) != DEFAULT_KINDS:  # files with the default can be read by versions without other kinds
            self.config["kinds"] = [choice("feature", kind, FEATURES) for kind in kinds]
        self.decisions = decisions_of(masked, layerwise)
        self.kinds: list[list[Feature]] = []
        self.sizes: list[int] = []
        for index, decision in enumerate(self.decisions):
            shape = masked.read_shape(decision.gates[0])
            found: list[Feature] = []
            for kind in (FEATURES[name] for name in FEATURES if name in kinds):
                feature = kind.fit(shape, feature_size - sum(other.size for other in found), grid)
                found += [] if feature is None else [feature]
            if not found:
                raise InvalidInputError(
                    f"kinds is {list(kinds)}: no features of a map {shape} with grid={grid} and feature_size="
                    f"{feature_size}. Add 'average', which always fits."
                )
            self.kinds.append(found)
            self.sizes.append(sum(feature.size for feature in found))
            self.register_buffer(f"mean{index}", torch.zeros(self.sizes[-1]))
            self.register_buffer(f"std{index}", torch.ones(self.sizes[-1]))
        self.macs = sum(feature.macs for found in self.kinds for feature in found)

    def raw(self, decision: int, reads: Tensor) -> Tensor:
        """Return features before standardisation: (batch, channels, height, width) -> (batch, sizes[decision])."""
        seen = Seen(reads)
        # Last to first: the averages can then use the grid's cells.
        parts = [feature.raw(seen) for feature in reversed(self.kinds[decision])]
        return parts[0] if len(parts) == 1 else torch.cat(parts[::-1], dim=1)

    def statistics(self, decision: int) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of a decision's features, (sizes[decision]) float32 each."""
        return self.get_buffer(f"mean{decision}"), self.get_buffer(f"std{decision}")

    def forward(self, decision: int, reads: Tensor) -> Tensor:
        """Return the features of a decision.

        Args:
            decision: Index of the decision.
            reads: Input of the producer of its first gate, (batch, channels, height, width).

        Returns:
            (batch, sizes[decision]) float32 in [-10, 10].
        """
        # Standardised with statistics of training images: (x - mean) / std, clipped.
        mean, std = self.statistics(decision)
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
            mean, std = self.statistics(index)
            mean.copy_(values.mean(0))
            # The standard deviation of a constant feature, as at the dark edge of digits, is 0.
            deviation = values.std(0, unbiased=False)
            std.copy_(torch.where(deviation > 1e-4, deviation, torch.ones_like(deviation)))
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
