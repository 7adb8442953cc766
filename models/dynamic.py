"""DynamicCNN: a masked CNN, its gate policy and its preprocessing in one file and one call."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor, nn

from prunegym.models.checkpoints import load_tensors, read_weights, write_tensors
from prunegym.models.data import Dataset, Normalisation
from prunegym.models.errors import InvalidInputError, MissingDataError, UnknownNameError
from prunegym.models.features import MaskFeatures
from prunegym.models.gate_policy import GatePolicy, StaticPolicy, check_penalty, rollout
from prunegym.models.masked import MaskedCNN
from prunegym.models.quantization import dequantized, quantized_state
from prunegym.models.skipping import Executed, SkippingCNN
from prunegym.models.zoo import ZOO, build

FORMAT, QUANTIZED_FORMAT = 1, 2
"""Float files keep format 1, so that versions which know no int8 weights still read them."""


@dataclasses.dataclass(frozen=True)
class CNNInfo:
    """What a model file says of a CNN beside its weights.

    Attributes:
        architecture: Name in the zoo; any other name means that the network has to be given at loading.
        num_classes: Outputs.
        image_shape: (channels, height, width).
        normalisation: How images become the network's input.
        classes: Names of the classes.
        dataset: Name of the data set that it was trained on.
        metadata: Anything else, plain JSON: accuracies, the commands that made it.
    """

    architecture: str
    num_classes: int
    image_shape: tuple[int, int, int]
    normalisation: Normalisation
    classes: tuple[str, ...]
    dataset: str
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, architecture: str, dataset: Dataset, metadata: Mapping[str, Any] | None = None) -> CNNInfo:
        """Describe a network for a data set."""
        return cls(
            architecture, len(dataset.classes), dataset.image_shape, dataset.normalisation, dataset.classes,
            dataset.name, dict(metadata or {}),
        )  # fmt: skip

    def build(self) -> nn.Module:
        """Build the network with fresh weights.

        Raises:
            InvalidInputError: If it is none of the zoo.
        """
        if self.architecture not in ZOO:
            raise InvalidInputError(
                f"The file holds weights of {self.architecture!r}, which is no network of the zoo. Build it yourself "
                "and pass it as network=."
            )
        return build(self.architecture, self.num_classes, self.image_shape[0], self.image_shape[1])

    def example(self) -> Tensor:
        """Return a blank input (1, channels, height, width) float32."""
        return torch.zeros(1, *self.image_shape)


class Prediction(NamedTuple):
    """What :meth:`DynamicCNN.predict` says of a batch of images."""

    labels: Tensor
    """(batch,) int64."""
    names: list[str]
    """Names of the classes."""
    logits: Tensor
    """(batch, classes) float32."""
    masks: Tensor
    """(batch, mask_size) bool: the channels that were kept."""
    macs: Tensor
    """(batch,) float64: MACs of the CNN under the mask and of the policy."""
    mac_share: Tensor
    """(batch,) float64: the same as a share of the original CNN's MACs."""


class DynamicCNN(nn.Module):
    """A CNN that decides for each image which channels it needs.

    Args:
        masked: The CNN; it is frozen.
        policy: Decides its gates.
        info: Preprocessing and names.

    Attributes:
        execution: How images are run: ``masked``, unless :meth:`skip` was called.

    Example:
        >>> from prunegym.models import load_dataset, shipped_model
        >>> model, digits = shipped_model("digits"), load_dataset("digits", "test")
        >>> model.predict(digits.images[:5]).names == [str(int(label)) for label in digits.labels[:5]]
        True
    """

    def __init__(self, masked: MaskedCNN, policy: GatePolicy | StaticPolicy, info: CNNInfo) -> None:
        super().__init__()
        # One memory layout for all, so that a loaded model gives the very numbers of the one that was saved.
        self.masked = masked.freeze().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.policy = policy
        self.info = info
        self.execution = "masked"
        self._skipping: SkippingCNN | None = None
        self.eval()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles: what skips is made anew, since the kernel's memory is not copied."""
        return {**self.__dict__, "_skipping": None}

    def _apply(self, fn: Any, recurse: bool = True) -> DynamicCNN:
        self._skipping = None  # it has weights of its own, which do not move along
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights, as in torch; what skips has copies of the old ones and is made anew."""
        self._skipping = None
        return super().load_state_dict(*args, **kwargs)

    def skip(self, execution: str = "auto") -> DynamicCNN:
        """Run images from now on so that masked channels cost no time; results are the same up to rounding.

        It is for inference: no gradients, and the weights are those of now. Call it again after changing them.

        Args:
            execution: ``auto`` measures on the first images what is fastest here, see
                :data:`prunegym.models.skipping.EXECUTIONS`; ``masked`` goes back to computing every channel.

        Returns:
            Itself.

        Raises:
            UnknownNameError: If there is no such way.
            InvalidInputError: If it cannot run this network here; the message says why.
        """
        self._skipping = SkippingCNN(self.masked, self.policy, execution)
        self.execution = execution
        return self

    @property
    def skipping(self) -> SkippingCNN:
        """What runs the images, with what ``auto`` chose and why."""
        if self._skipping is None:
            self._skipping = SkippingCNN(self.masked, self.policy, self.execution)
        return self._skipping

    @property
    def normalisation(self) -> Normalisation:
        """How images become the network's input."""
        return self.info.normalisation

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.info.classes

    @property
    def policy_mac_share(self) -> float:
        """MACs of deciding, as a share of the original CNN's."""
        return float(self.policy.macs / self.masked.cost.total_macs)

    def prepare_images(self, images: Tensor) -> Tensor:
        """Check and normalise images.

        Args:
            images: (batch, channels, height, width), uint8 in 0..255 or float in [0, 1].

        Raises:
            InvalidInputError: For another shape, type or range.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.info.image_shape:
            raise InvalidInputError(
                f"Images have shape {tuple(images.shape)}; (batch, {', '.join(map(str, self.info.image_shape))}) is "
                "needed. Resize them, and add the batch dimension for a single image."
            )
        if images.dtype != torch.uint8:
            low, high = (float(images.min()), float(images.max())) if images.numel() else (0.0, 0.0)
            if not images.is_floating_point() or not (low >= 0 and high <= 1):
                raise InvalidInputError(
                    f"Images are {images.dtype} from {low:.4g} to {high:.4g}; uint8 in 0..255 or floats in [0, 1] are "
                    "needed, not normalised: the model does that itself."
                )
        return self.normalisation(images.to(next(self.masked.parameters()).device))

    def forward(self, images: Tensor, penalty: float | None = None) -> Tensor:
        """Return logits (batch, classes) of images (batch, channels, height, width), uint8 or in [0, 1]."""
        return self.run(self.prepare_images(images), penalty).output

    def run(self, images: Tensor, penalty: float | None = None) -> Executed:
        """Run images (batch, channels, height, width) that are normalised already, the policy deciding on the way.

        Raises:
            InvalidInputError: For a lambda that the policy is not for.
        """
        check_penalty(self.policy.penalty_range, penalty)
        if self.execution != "masked":
            return self.skipping(images, penalty=penalty)
        done = rollout(self.masked, self.policy, images, penalty=penalty)
        return Executed(done.output, done.mask.bool())

    @torch.inference_mode()
    def predict(self, images: Tensor, penalty: float | None = None) -> Prediction:
        """Classify images and say what it cost.

        Args:
            images: (batch, channels, height, width), uint8 or floats in [0, 1].
            penalty: lambda, for a policy that was trained for a range of them, of which the middle is the default: the
                larger it is, the fewer channels are kept.

        Returns:
            Labels, masks and MACs.

        Raises:
            InvalidInputError: For images of the wrong shape, type or range, and a lambda that the policy is not for.
        """
        run = self.run(self.prepare_images(images), penalty)
        labels = run.output.argmax(1)
        macs = self.masked.cost.macs(run.mask) + self.policy.macs
        names = [self.classes[int(label)] for label in labels]
        share = macs / self.masked.cost.total_macs
        return Prediction(labels, names, run.output.float(), run.mask, macs, share)

    def save(self, path: Path | str, int8: bool = False) -> None:
        """Write everything to one safetensors file; ``int8``: see :func:`write_model`."""
        write_model(Path(path), self.masked.network, self.info, self.policy, self.masked, int8=int8)

    def export_onnx(self, path: Path | str, **options: Any) -> Path:
        """Write everything as one ONNX model; see :func:`prunegym.models.onnx_export.export_onnx` for the options."""
        from prunegym.models.onnx_export import export_onnx

        return export_onnx(self, path, **options)

    @classmethod
    def load(cls, path: Path | str, network: nn.Module | None = None, device: str = "cpu") -> DynamicCNN:
        """Read what :meth:`save` wrote; nothing in the file is executed.

        Args:
            path: The file.
            network: The network's class with any weights, where it is none of the zoo's.
            device: Where it goes.

        Raises:
            MissingDataError: If there is no such file.
            InvalidInputError: If the file is damaged, of a newer format, or has no policy.
        """
        stored = read_model(Path(path), network)
        if stored.policy is None:
            raise InvalidInputError(
                f"{path} is a CNN without a gate policy. Train one with `prunegym train` or `prunegym prepare`."
            )
        return cls(stored.masked, stored.policy, stored.info).to(device)


class StoredModel(NamedTuple):
    """A model file's content."""

    masked: MaskedCNN
    policy: GatePolicy | StaticPolicy | None
    info: CNNInfo


def write_model(
    path: Path,
    network: nn.Module,
    info: CNNInfo,
    policy: GatePolicy | StaticPolicy | None = None,
    masked: MaskedCNN | None = None,
    int8: bool = False,
) -> None:
    """Write a CNN, with or without a gate policy, to one safetensors file with JSON metadata.

    Args:
        path: The file.
        network: The CNN.
        info: What is known of it.
        policy: Its gate policy.
        masked: The masked CNN, whose choice of gates is stored with the policy.
        int8: Store the weights of convolutions and linears as int8, one scale an output channel: about a quarter of the
            size. They are floats again when the file is read, so nothing becomes faster.
    """
    state = quantized_state if int8 else nn.Module.state_dict
    tensors = {f"network.{name}": tensor for name, tensor in state(network).items()}
    description: dict[str, Any] = {"format": QUANTIZED_FORMAT if int8 else FORMAT, "info": dataclasses.asdict(info)}
    if policy is not None and masked is not None:
        tensors |= {f"policy.{name}": tensor for name, tensor in state(policy).items()}
        description["gates"] = [gate.name for gate in masked.gates]
        description["features"] = policy.features.config
        description["policy"] = {"kind": type(policy).__name__, **getattr(policy, "config", {})}
    write_tensors(path, tensors, {"prunegym": json.dumps(description)})


def read_model(path: Path, network: nn.Module | None = None) -> StoredModel:
    """Read a model file of :func:`write_model`.

    Args:
        path: The file.
        network: See :meth:`DynamicCNN.load`.

    Raises:
        MissingDataError: If there is no such file.
        InvalidInputError: If it is damaged or was not written by PruneGym.
    """
    if not path.exists():
        raise MissingDataError(f"There is no model file {path}. Check the path.")
    tensors = read_weights(path)
    description = _description(path)
    if description["format"] == QUANTIZED_FORMAT:
        tensors = dequantized(tensors, str(path))
    info = _info(description["info"])
    network = info.build() if network is None else network
    load_tensors(network, _part(tensors, "network."), str(path))
    gates = description.get("gates", "auto")
    masked = MaskedCNN(network, info.example(), gates=gates)
    if "policy" not in description:
        return StoredModel(masked, None, info)
    features = MaskFeatures(masked, **description["features"])
    options = dict(description["policy"])
    policy: GatePolicy | StaticPolicy
    if options.pop("kind") == "StaticPolicy":
        policy = StaticPolicy(features)
    else:
        bounds = options.pop("penalty_range", None)
        policy = GatePolicy(features, penalty_range=None if bounds is None else (bounds[0], bounds[1]), **options)
    load_tensors(policy, _part(tensors, "policy."), str(path))
    return StoredModel(masked, policy, info)


def _description(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("prunegym")
    if text is None:
        raise InvalidInputError(
            f"{path} has weights but no description of the network. Bare weights are loaded with "
            "prunegym.models.load_weights(network, path)."
        )
    description: dict[str, Any] = json.loads(text)
    if description.get("format") not in (FORMAT, QUANTIZED_FORMAT):
        raise InvalidInputError(
            f"{path} has format {description.get('format')}; this version of PruneGym reads formats {FORMAT} and "
            f"{QUANTIZED_FORMAT}. Update it."
        )
    return description


def _info(raw: dict[str, Any]) -> CNNInfo:
    normalisation = Normalisation(tuple(raw["normalisation"]["mean"]), tuple(raw["normalisation"]["std"]))
    channels, height, width = raw["image_shape"]
    return CNNInfo(
        raw["architecture"], raw["num_classes"], (channels, height, width), normalisation, tuple(raw["classes"]),
        raw["dataset"], raw["metadata"],
    )  # fmt: skip


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


SHIPPED = ("digits",)


def shipped_model(name: str = "digits") -> DynamicCNN:
    """Load a model that comes with PruneGym.

    Raises:
        UnknownNameError: If there is none of that name.
    """
    return DynamicCNN.load(shipped_path(name))


def shipped_path(name: str) -> Path:
    """Return the file of a model that comes with PruneGym.

    Raises:
        UnknownNameError: If there is none of that name.
    """
    if name not in SHIPPED:
        raise UnknownNameError("shipped model", name, SHIPPED)
    return Path(__file__).parent / "shipped" / f"{name}.safetensors"
