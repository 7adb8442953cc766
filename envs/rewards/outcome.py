"""Outcomes of episodes: the batched tensors from which rewards and accuracy terms are computed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from prunegym.html import MOST_IMAGES, picture, table
from prunegym.models.data.dataset import Dataset
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.tasks.answers import target_text


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """A batch of finished episodes, one row each; all tensors are on the device of the CNN.

    During a layer-by-layer episode a reward's ``step_cost`` gets an outcome in which the bits of later gates are 0 and
    ``logits`` has shape (batch, 0), since the output is not known yet.

    Attributes:
        logits: The masked CNN's output, (batch, classes) float32, or (batch, ...) for networks that do not classify.
        labels: (batch,) int64, or other targets (batch, ...).
        indices: (batch,) int64, the images' positions in ``dataset``.
        mask: (batch, mask_size) float32 of 0 and 1.
        kept: (batch,) float64, number of kept channels.
        mac_share: (batch,) float64, MACs of the masked CNN / MACs of the original CNN, without the policy's.
        penalty: (batch,) float64, lambda of each episode.
        masked: The CNN, for its gates and its cost model.
        dataset: The images. An agent learns on one split, and its checkpoints are compared on another.
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

    def __repr__(self) -> str:
        """Return the number of episodes and their means."""
        right = "" if self.predictions is None else f"{(self.predictions == self.labels).double().mean():.3f} correct, "
        return f"Outcome({len(self.mask)} episodes: {right}{self.mac_share.mean():.3f} of the MACs)"

    def _repr_html_(self) -> str:
        columns = {name: values[:MOST_IMAGES].tolist() for name, values in self.summary().items()}
        pixels = self.dataset.normalisation.as_bytes(self.dataset.images[torch.tensor(columns["index"])])
        images = [picture(one) for one in pixels]
        if self.dataset.objective.kind != "classes":
            kind, classes = self.dataset.objective.kind, self.dataset.classes
            columns["label"] = [target_text(kind, one, classes) for one in self.labels[: len(images)]]
        return table(("image", *columns), zip(images, *columns.values(), strict=True), repr(self))

    @functools.cached_property
    def dense_logits(self) -> Tensor:
        """The output of the CNN with all channels on, shaped as ``logits``; computed at first use."""
        return self.dense()

    @property
    def places(self) -> Tensor:
        """(batch,) int64, the images' positions in the whole split ``dataset.split``. Use them to look up your targets.

        ``indices`` counts within ``dataset``, which may be a sample or a part of the split.
        """
        return self.dataset.place(self.indices)

    @property
    def predictions(self) -> Tensor | None:
        """(batch,) int64, the predicted classes; None if the output is not (batch, classes), one class per image."""
        if self.logits.ndim != 2 or self.logits.shape[1] == 0 or self.dataset.objective.kind != "classes":
            return None
        return self.logits.argmax(1)

    def copied(self) -> Outcome:
        """Return a copy; changes of its tensors have no effect elsewhere."""
        return dataclasses.replace(
            self, logits=self.logits.clone(), labels=self.labels.clone(), indices=self.indices.clone(),
            mask=self.mask.clone(), kept=self.kept.clone(), mac_share=self.mac_share.clone(),
            penalty=self.penalty.clone(),
        )  # fmt: skip

    def summary(self) -> dict[str, npt.NDArray[Any]]:
        """Return the entries of infos, each (batch,): index, label, prediction, correct, kept and mac_share.

        If images do not have one class each, ``score``, the data set's metric, replaces prediction and correct.
        """
        columns = {"index": self.indices, "label": self.labels}
        if self.predictions is not None:
            columns |= {"prediction": self.predictions, "correct": self.predictions == self.labels}
        elif self.dataset.objective.kind != "classes":
            columns["score"] = self.dataset.objective.score(self.logits, self.labels)
        columns |= {"kept": self.kept.long(), "mac_share": self.mac_share}
        return {name: column.cpu().numpy().copy() for name, column in columns.items()}
