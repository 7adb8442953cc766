"""The description of a CNN in a model file: classes, images, targets, path of its data set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from prunegym.errors import InvalidInputError, MissingDataError
from prunegym.models.checks import check_images
from prunegym.models.data.dataset import CLASSES, Dataset
from prunegym.models.data.files.decoding import decode, to_pixels
from prunegym.models.data.normalisation import Normalisation
from prunegym.models.data.transform import Transform
from prunegym.models.storage.run_state import BROKEN
from prunegym.models.storage.weights import fingerprint_of
from prunegym.models.tasks.metrics import SHARES
from prunegym.models.tasks.objective import KINDS, Objective
from prunegym.models.zoo.network_registry import build, is_code, is_known
from prunegym.validation import finite, instance, typed, whole_number

MOST_PIXELS = 2**22
"""Largest number of pixels times channels of a CNN's images in a file: tracing needs memory in proportion to it."""


@dataclasses.dataclass(frozen=True)
class CNNInfo:
    """The description of a CNN in a model file.

    Attributes:
        architecture: Name of the network, see :func:`prunegym.models.build`. With any other name, pass or register the
            network before you load.
        num_classes: Outputs.
        image_shape: (channels, height, width).
        normalisation: How images become the network's input.
        classes: Names of the classes.
        dataset: Name of the data set that it was trained on.
        metadata: Anything else as plain JSON: accuracies, the commands that made it.
        transform: How an image of any size becomes one of ``image_shape``; None if its data set has that size.
        objective: The kind of targets, loss and metric of its training. Your functions are not stored.
        data_path: Absolute path of its data set; None if it is known by its name. Loading never opens it.
    """

    architecture: str
    num_classes: int
    image_shape: tuple[int, int, int]
    normalisation: Normalisation
    classes: tuple[str, ...]
    dataset: str
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    transform: Transform | None = None
    objective: Objective = CLASSES
    data_path: str | None = None

    def __post_init__(self) -> None:
        """Check what PruneGym reads of the metadata.

        Raises:
            InvalidInputError: If it is of another kind.
        """
        _check_metadata(self.metadata)

    @classmethod
    @typed
    def of(
        cls,
        architecture: str,
        dataset: Dataset,
        metadata: Mapping[str, Any] | None = None,
        outputs: int | None = None,
    ) -> CNNInfo:
        """Describe a network for a data set; ``outputs`` is needed only if the data set has no targets."""
        notes = {"splits": list(dataset.notes)} if dataset.notes else {}
        instance("architecture", architecture, str)
        return cls(
            architecture, outputs or dataset.outputs, dataset.image_shape, dataset.normalisation, dataset.classes,
            dataset.name, {**notes, **(metadata or {})}, dataset.transform, dataset.objective, dataset.path,
        )  # fmt: skip

    def adapt(self, dataset: Dataset) -> Dataset:
        """Return a data set adapted to the CNN: labels numbered like its classes, images normalised as in training.

        Its loss and metric are those of the CNN's training, unless you have chosen others.

        Raises:
            InvalidInputError: If images have another shape, targets are of another kind, or the CNN does not have one
                of the classes.
        """
        check_images(dataset, self.image_shape)
        own, trained = dataset.objective, self.objective
        if own.kind != trained.kind and "outputs" not in (own.kind, trained.kind):
            raise InvalidInputError(
                f"The model was trained for {KINDS[trained.kind].targets}; data set {dataset.name!r} has "
                f"{KINDS[own.kind].targets}. Choose a data set and a model that fit together."
            )
        if own.kind == trained.kind:
            given = {name: getattr(own, name) for name in ("loss", "metric", "class_weights")}
            own = dataclasses.replace(trained, **{name: value for name, value in given.items() if value is not None})
        dataset = dataset.with_classes(self.classes) if self.classes else dataset
        return dataclasses.replace(dataset, normalisation=self.normalisation, objective=own)

    def with_dense_accuracy(self, measured: Mapping[Dataset, float]) -> CNNInfo:
        """Store the original network's accuracy (0 to 1) on data sets, each with a hash of its images."""
        accuracies = {_place(data): accuracy for data, accuracy in measured.items()}
        images = {_place(data): fingerprint_of(data) for data in measured}
        metadata = {**self.metadata, "dense_accuracy": accuracies, "dense_images": images}
        return dataclasses.replace(self, metadata=metadata)

    def dense_accuracy(self, dataset: Dataset) -> float | None:
        """Return the original network's accuracy on a data set; None unless it is stored for exactly these images.

        Raises:
            InvalidInputError: If the stored number cannot be a value of the data set's metric.
        """
        images: str | None = self.metadata.get("dense_images", {}).get(_place(dataset))
        if images is None or images != fingerprint_of(dataset):
            return None
        metric, place = dataset.objective.name("metric"), _place(dataset)
        low, high = (0.0 if metric in SHARES else -math.inf), (math.inf if ":" in metric else 1.0)
        hint = "The model file is damaged. Give the original network, or write the file again."
        return finite(
            f"The metric {metric!r} stored for {place}", self.metadata["dense_accuracy"][place], low, high, hint=hint
        )

    def build(self) -> nn.Module:
        """Build the network with new weights.

        Raises:
            InvalidInputError: If it is neither in the zoo nor of a library, or is your code that was not named yet.
        """
        if not is_known(self.architecture):
            how = (
                f"which is your code, and is not imported because a file says so: --import {self.architecture}, or "
                "build the network and pass it as network=."
                if is_code(self.architecture)
                else "which is not in the zoo. Build the network, pass it as network=, or import a module that calls "
                "register_network (--import MODULE)."
            )
            raise InvalidInputError(f"The file has weights of {self.architecture!r}, {how}")
        return build(self.architecture, self.num_classes, self.image_shape[0], self.image_shape[1:])

    @property
    def shown_transform(self) -> Transform:
        """How an image of any size becomes one of ``image_shape``; by default it is stretched."""
        return self.transform or Transform(self.image_shape[1:], crop="none", interpolation="bicubic")

    def read_images(self, images: Sequence[Path | str | Image.Image]) -> Tensor:
        """Return image files, or images of Pillow, of any size, orientation and mode as the network's pixels.

        Returns:
            (batch, channels, height, width) uint8.

        Raises:
            MissingDataError: If there is no such file.
            InvalidInputError: If one is not an image, or the network needs images that files cannot have.
        """
        channels = self.image_shape[0]
        if channels not in (1, 3) or self.normalisation.of_own_range:
            raise InvalidInputError(
                f"The model takes images of {channels} channels, with values from {self.normalisation.low:g} to "
                f"{self.normalisation.high:g}, but image files have 1 or 3 channels and integers. Use "
                "DynamicCNN.predict in Python."
            )
        return torch.stack([self._read_image(image) for image in images])

    def _read_image(self, image: Path | str | Image.Image) -> Tensor:
        if isinstance(image, Image.Image):
            try:
                return to_pixels(image, self.image_shape[0], self.shown_transform)
            except ValueError as error:
                raise InvalidInputError(f"The image cannot be used: {error}.") from error
        path = Path(image)
        if not path.is_file():
            raise MissingDataError(f"There is no image {path}. Check the path.")
        return decode(path, str(path), self.image_shape[0], self.shown_transform)

    def example(self) -> Tensor:
        """Return a blank input (1, channels, height, width) float32."""
        return torch.zeros(1, *self.image_shape)


def _place(dataset: Dataset) -> str:
    return f"{dataset.name}/{dataset.split}"


def as_json(info: CNNInfo) -> dict[str, Any]:
    """Return a description as plain JSON. Defaults are left out, so that older versions can read it."""
    raw = {**dataclasses.asdict(dataclasses.replace(info, objective=CLASSES)), "objective": info.objective.as_json()}
    if not info.normalisation.of_own_range:
        raw["normalisation"] = {name: raw["normalisation"][name] for name in ("mean", "std")}
    if info.objective == CLASSES:
        del raw["objective"]
    return {name: value for name, value in raw.items() if value is not None}


def from_json(raw: dict[str, Any]) -> CNNInfo:
    """Return a description from the JSON of :func:`as_json`; other input may raise any error."""
    given = raw["normalisation"]
    normalisation = Normalisation(
        tuple(given["mean"]), tuple(given["std"]), *(given[k] for k in ("low", "high") if k in given)
    )
    channels, height, width = (whole_number("image_shape", size) for size in raw["image_shape"])
    whole_number("the number of pixels and channels of an image", channels * height * width, 1, MOST_PIXELS)
    names = [raw["architecture"], raw["dataset"], *raw["classes"]]
    if not isinstance(raw["classes"], list | tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError("names of the architecture, the data set or the classes are no text")
    objective = _objective(dict(raw.get("objective", {})))
    # Images without targets do not say how many outputs there are.
    whole_number("num_classes", raw["num_classes"], 0 if objective.kind == "outputs" else 1)
    sizes = {"mean": channels, "std": channels, "classes": raw["num_classes"]}
    if objective.kind in ("numbers", "outputs"):
        sizes["classes"] = len(raw["classes"])
    for name, values in {"mean": given["mean"], "std": given["std"], "classes": raw["classes"]}.items():
        if len(values) != sizes[name]:
            raise ValueError(f"{name} has {len(values)} entries, not {sizes[name]}")
    transform, path = raw.get("transform"), raw.get("data_path")
    return CNNInfo(
        str(raw["architecture"]), raw["num_classes"], (channels, height, width), normalisation, tuple(raw["classes"]),
        raw["dataset"], dict(raw["metadata"]), None if transform is None else Transform(**transform), objective,
        None if path is None else str(path),
    )  # fmt: skip


def _check_metadata(raw: dict[str, Any]) -> None:
    """Raise InvalidInputError if metadata that PruneGym reads is of another kind; all other keys are free."""
    try:
        figures = [{**raw.get(name, {})} for name in ("dense_accuracy", "prepared_accuracy")]
        images = {**raw.get("dense_images", {})}
        texts = [*images.values(), *(e[key] for e in raw.get("history", []) for key in ("step", "command"))]
        broken = not all(isinstance(text, str) for text in [*texts, *raw.get("splits", [])])
    except BROKEN:
        broken = True
    if broken or not images.keys() <= figures[0].keys():
        raise InvalidInputError(
            "metadata has other content than PruneGym writes under dense_accuracy, prepared_accuracy, dense_images, "
            "splits or history. Choose other names for your own notes."
        )
    for place, value in (pair for each in figures for pair in each.items()):
        finite(f"metadata: the accuracy on {place}", value)


def _objective(raw: dict[str, Any]) -> Objective:
    # Functions are not called by a name in a file: reading one must execute nothing.
    own = [name for name in ("loss", "metric") if ":" in str(raw.get(name))]
    weights = raw.pop("class_weights", None)
    known = {name: value for name, value in raw.items() if name not in own}
    return Objective(**known, class_weights=None if weights is None else tuple(weights))
