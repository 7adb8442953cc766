"""What came of an episode: the batched tensors that rewards and accuracy terms are computed from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy.typing as npt
from torch import Tensor

from prunegym.models.data.dataset import Dataset
from prunegym.models.masking.masked_cnn import MaskedCNN


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """A batch of finished episodes, one row each; all tensors are on the device of the CNN.

    While a layer-by-layer episode is under way, a reward's ``step_cost`` gets the same with the bits of later gates 0
    and with ``logits`` of shape (batch, 0), since the output is not known yet.

    Attributes:
        logits: The masked CNN's output, (batch, classes) float32, or (batch, ...) for networks that do not classify.
        labels: (batch,) int64.
        indices: (batch,) int64: which images of ``dataset`` these are.
        mask: (batch, mask_size) float32 of 0 and 1.
        kept: (batch,) float64, number of kept channels.
        mac_share: (batch,) float64, MACs of the masked CNN / MACs of the original CNN, without the policy's.
        penalty: (batch,) float64, lambda of each episode.
        masked: The CNN, for its gates and its cost model.
        dataset: The images. An agent learns on those of one split, and its actors are compared on another's.
        dense: Computes ``dense_logits``.
    """

    logits: Tensor
    labels: Tensor
    indices: Tensor
    mask: Tensor
    kept: Tensor
    mac_share: Tensor
    penalty: Tensor
    masked: MaskedCNN
    dataset: Dataset
    dense: Callable[[], Tensor] = dataclasses.field(repr=False)

    @functools.cached_property
    def dense_logits(self) -> Tensor:
        """The output of the CNN with all channels on, shaped as ``logits``; computed when first asked for."""
        return self.dense()

    @property
    def places(self) -> Tensor:
        """(batch,) int64: where the images stand in the whole of split ``dataset.split``, to look up one's own targets.

        ``indices`` counts within ``dataset``, which may be a sample or a part of the split.
        """
        return self.dataset.place(self.indices)

    @property
    def predictions(self) -> Tensor | None:
        """(batch,) int64, the classes that were chosen; None unless the output is (batch, classes)."""
        if self.logits.ndim != 2 or self.logits.shape[1] == 0:
            return None
        return self.logits.argmax(1)

    def copied(self) -> Outcome:
        """Return the same with tensors of its own: who writes into them changes nothing."""
        return dataclasses.replace(
            self, logits=self.logits.clone(), labels=self.labels.clone(), indices=self.indices.clone(),
            mask=self.mask.clone(), kept=self.kept.clone(), mac_share=self.mac_share.clone(),
            penalty=self.penalty.clone(),
        )  # fmt: skip

    def summary(self) -> dict[str, npt.NDArray[Any]]:
        """Return what infos report, each (batch,): index, label, prediction, correct, kept (int64, bool) and mac_share.

        Prediction and correct are missing where the output is not (batch, classes).
        """
        columns = {"index": self.indices, "label": self.labels}
        if self.predictions is not None:
            columns |= {"prediction": self.predictions, "correct": self.predictions == self.labels}
        columns |= {"kept": self.kept.long(), "mac_share": self.mac_share}
        return {name: column.cpu().numpy().copy() for name, column in columns.items()}
