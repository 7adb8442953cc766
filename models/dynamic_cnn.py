"""DynamicCNN: a masked CNN, its gate policy and its preprocessing in one file and one call."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models.checks import check_device
from prunegym.models.data.dataset import Normalisation
from prunegym.models.gating.gate_policy import GatePolicy, check_penalty
from prunegym.models.gating.rollouts import rollout
from prunegym.models.gating.static_policy import StaticPolicy
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.program.path import Executed
from prunegym.models.skipping.skipping_cnn import SkippingCNN
from prunegym.models.storage.model_file import CNNInfo, read_model, write_model
from prunegym.validation import choice, shape


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
        policy: Decides its gates; one on another device is copied to the CNN's.
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
        self.policy = _beside(policy, masked)
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
                :data:`prunegym.models.EXECUTIONS`; ``masked`` goes back to computing every channel.

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
            images: (batch, channels, height, width), uint8 in 0..255 or float in [0, 1]; a tensor or an array.

        Raises:
            InvalidInputError: For another shape, type or range.
        """
        try:
            images = torch.as_tensor(images)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidInputError(
                f"Images are a {type(images).__name__} that is no tensor ({error}). Give one of shape (batch, "
                f"{', '.join(map(str, self.info.image_shape))}), uint8 in 0..255 or floats in [0, 1]."
            ) from error
        hint = "Resize the images, and add the batch dimension for a single one."
        shape("The image tensor", images, ("batch", *self.info.image_shape), hint)
        if images.dtype != torch.uint8:
            low, high = (float(images.min()), float(images.max())) if images.numel() else (0.0, 0.0)
            if not images.is_floating_point() or not (low >= 0 and high <= 1):
                raise InvalidInputError(
                    f"Images are {images.dtype} from {low:.4g} to {high:.4g}; uint8 in 0..255 or floats in [0, 1] are "
                    "needed, not normalised: the model does that itself."
                )
        return self.normalisation(images.to(self.masked.device)).to(self.masked.dtype)

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
        # A network may have more outputs than its data has classes.
        names = [self.classes[label] if label < len(self.classes) else str(label) for label in labels.tolist()]
        share = macs / self.masked.cost.total_macs
        return Prediction(labels, names, run.output.float(), run.mask, macs, share)

    def save(self, path: Path | str, int8: bool = False) -> None:
        """Write everything to one safetensors file; ``int8``: see :func:`write_model`."""
        write_model(path, self.masked.network, self.info, self.policy, self.masked, int8=int8)

    def export_onnx(self, path: Path | str, **options: Any) -> Path:
        """Write everything as one ONNX model; options: :func:`prunegym.models.export.onnx_model.export_onnx`."""
        from prunegym.models.export.onnx_model import export_onnx

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
            InvalidInputError: If the file is damaged, of a newer format, or has no policy, or there is no such device.
        """
        where = check_device(device)
        stored = read_model(path, network)
        if stored.policy is None:
            raise InvalidInputError(
                f"{path} is a CNN without a gate policy. Train one with `prunegym train` or `prunegym prepare`."
            )
        return cls(stored.masked, stored.policy, stored.info).to(where)


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
    return Path(__file__).parent / "shipped" / f"{choice('shipped model', name, SHIPPED)}.safetensors"


def _beside(policy: GatePolicy | StaticPolicy, masked: MaskedCNN) -> GatePolicy | StaticPolicy:
    """Return a policy where its CNN is; one that is elsewhere, as an agent's on a GPU, is copied."""
    device = masked.device
    there = {value.device for value in (*policy.parameters(), *policy.buffers())}
    return policy if there <= {device} else copy.deepcopy(policy).to(device)
