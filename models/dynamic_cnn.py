"""DynamicCNN: a masked CNN with its gate policy and preprocessing, in one file and one call."""

from __future__ import annotations

import copy
import html
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from prunegym.errors import InvalidInputError, SkippingWarning
from prunegym.models.checks import check_device
from prunegym.models.data.dataset import Dataset
from prunegym.models.data.normalisation import FULL, Normalisation
from prunegym.models.gating.features import decisions_of
from prunegym.models.gating.gate_policy import check_penalty
from prunegym.models.gating.static_policy import Policy, deciding_macs, rollout
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.int8_path import calibrate
from prunegym.models.skipping.kernel_path import KernelPath
from prunegym.models.skipping.program.path import Executed
from prunegym.models.skipping.skipping_cnn import SkippingCNN
from prunegym.models.storage.cnn_info import CNNInfo
from prunegym.models.storage.model_file import Bundle, read_model, write_model
from prunegym.models.tasks.answers import answers
from prunegym.validation import array, choice, shape, typed, whole_number


class Prediction(NamedTuple):
    """Results of :meth:`DynamicCNN.predict` for a batch of images."""

    labels: Tensor
    """(batch,) int64, the classes; for other targets see :func:`prunegym.models.tasks.answers.answers`."""
    names: list[str]
    """The predictions as text: names of the classes."""
    logits: Tensor
    """(batch, classes) or other outputs, float32."""
    masks: Tensor
    """(batch, mask_size) bool: the channels that were kept."""
    macs: Tensor
    """(batch,) float64: MACs of the CNN under the mask and of the policy."""
    mac_share: Tensor
    """(batch,) float64: ``macs`` / MACs of the original CNN."""


class DynamicCNN(nn.Module):
    """A CNN that decides for each image which of its channels to compute.

    Args:
        masked: The CNN; it is frozen.
        policy: Decides the gates. A policy on another device is copied to the CNN's device.
        info: Preprocessing and names.

    Attributes:
        execution: How images are run: ``masked`` unless you call :meth:`skip`.

    Example:
        >>> from prunegym.models import load_dataset, shipped_model
        >>> model, digits = shipped_model("digits"), load_dataset("digits", "test")
        >>> model.predict(digits.images[:5]).names == [str(int(label)) for label in digits.labels[:5]]
        True
    """

    @typed
    def __init__(self, masked: MaskedCNN, policy: Policy, info: CNNInfo) -> None:
        super().__init__()
        if policy.decisions != decisions_of(masked, policy.features.config["layerwise"]):
            widths = [decision.width for decision in policy.decisions]
            raise InvalidInputError(
                f"The policy decides gates of widths {widths}; those of the CNN have "
                f"{[gate.width for gate in masked.gates]}. Give the policy that was made for this MaskedCNN."
            )
        # Always the same memory layout, so that a loaded model gives exactly the outputs of the saved one.
        self.masked = masked.freeze().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.policy = _beside(policy, masked)
        self.info = info
        self.execution = "masked"
        self._skipping: SkippingCNN | None = None
        self.eval()

    def __repr__(self) -> str:
        """Return the parts in a line; ``masked.network`` and ``policy`` print their layers."""
        steps = "one step" if len(self.policy.decisions) == 1 else f"{len(self.policy.decisions)} steps"
        return f"DynamicCNN({self.info.dataset!r}, {self.masked}, {type(self.policy).__name__} in {steps})"

    def _repr_html_(self) -> str:
        return f"<p><code>{html.escape(repr(self))}</code></p>{self.masked._repr_html_()}"

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles, without the skipping paths: kernel memory cannot be copied."""
        return {**self.__dict__, "_skipping": None}

    def _apply(self, fn: Any, recurse: bool = True) -> DynamicCNN:
        self._skipping = None  # it has copies of the weights, which are not moved
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights, as in torch; skipping paths are rebuilt, because they have copies of the old weights."""
        self._skipping = None
        return super().load_state_dict(*args, **kwargs)

    def skip(self, execution: str = "auto") -> DynamicCNN:
        """Skip the computation of masked channels from now on. Results are the same up to rounding.

        A warning says so if much of the network is computed for all channels, and names the step.

        Use it for inference: there are no gradients, and the current weights are copied. Call it again if you change
        them.

        Args:
            execution: ``auto`` measures on the first images which path is fastest here, see
                :data:`prunegym.models.EXECUTIONS`; ``int8`` rounds values to bytes, for which :meth:`calibrate` comes
                first, and ``bfloat16`` to numbers of 16 bits; ``masked`` computes every channel again.

        Returns:
            Itself.

        Raises:
            UnknownNameError: If there is no path with this name.
            InvalidInputError: If the path cannot run this network here; the message says why.
        """
        self._skipping = SkippingCNN(self.masked, self.policy, execution)
        self.execution = execution
        if execution in ("auto", KernelPath.name) and self._skipping.shortfall:
            warnings.warn(self._skipping.shortfall, SkippingWarning, stacklevel=2)
        return self

    def calibrate(self, dataset: Dataset, images: int = 1024) -> DynamicCNN:
        """Measure the ranges of values that execution ``int8`` needs, under the masks of the policy.

        They are part of the model and of its file. Calibrate again after the CNN or its policy was trained.

        Args:
            dataset: Training images, normalised as the model needs them.
            images: How many of them are used; a random subset, the same every time.

        Returns:
            Itself.

        Raises:
            InvalidInputError: If there is no image, or the network cannot be read as layers.
        """
        sample = dataset.sample(whole_number("images", images))
        self.masked.ranges = calibrate(self.masked, self.policy, (batch for _, batch in sample.batches(64)))
        self._skipping = None
        return self

    @property
    def skipping(self) -> SkippingCNN:
        """The object that runs images. It also has the choices of ``auto``, with reasons."""
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

    def prepare_images(self, images: Tensor | Sequence[Any]) -> Tensor:
        """Check and normalise images.

        Args:
            images: (batch, channels, height, width), uint8, uint16 or float in [0, 1] (or the range of the model's
                data set); a tensor or an array. Or a list of image files, or of Pillow's images, of any size.

        Raises:
            InvalidInputError: If their shape, type or range is wrong.
        """
        if isinstance(images, list | tuple) and images and isinstance(images[0], str | Path | Image.Image):
            images = self.info.read_images(images)
        if not isinstance(images, Tensor):
            sizes = ", ".join(map(str, self.info.image_shape))
            hint = f"Give a tensor of shape (batch, {sizes}), uint8 in 0..255 or floats in [0, 1]."
            images = torch.as_tensor(array("The image tensor", images, hint))
        hint = (
            "Put channels first (in NumPy: images.transpose(0, 3, 1, 2)), add the batch dimension for a single image "
            "(image[None]), and resize images of another size."
        )
        shape("The image tensor", images, ("batch", *self.info.image_shape), hint)
        norm = self.normalisation
        if images.dtype not in FULL or norm.of_own_range:
            floats = images.is_floating_point() and images.numel()
            low, high = (float(images.min()), float(images.max())) if floats else (norm.low, norm.high)
            # The model's own range comes from its training images; other images may exceed it.
            if not images.is_floating_point() or not (norm.of_own_range or (low >= 0 and high <= 1)):
                needed = (
                    f"floats from {norm.low:.4g} to {norm.high:.4g}"
                    if norm.of_own_range
                    else ("uint8 in 0..255 or floats in [0, 1]")
                )
                raise InvalidInputError(
                    f"Images are {images.dtype} from {low:.4g} to {high:.4g}; {needed} are "
                    "needed. Do not normalise them: the model does."
                )
        return self.normalisation(images.to(self.masked.device)).to(self.masked.dtype)

    def forward(self, images: Tensor, penalty: float | None = None) -> Tensor:
        """Return logits (batch, classes) of images (batch, channels, height, width), uint8 or in [0, 1]."""
        return self.run(self.prepare_images(images), penalty).output

    def run(self, images: Tensor, penalty: float | None = None) -> Executed:
        """Run normalised images (batch, channels, height, width); the policy decides the gates.

        Raises:
            InvalidInputError: If the policy was not trained for this lambda.
        """
        check_penalty(self.policy.penalty_range, penalty)
        if self.execution != "masked":
            return self.skipping(images, penalty=penalty)
        done = rollout(self.masked, self.policy, images, penalty=penalty)
        return Executed(done.output, done.mask.bool())

    @torch.inference_mode()
    def predict(self, images: Tensor | Sequence[Any], penalty: float | None = None) -> Prediction:
        """Predict images, and count their MACs.

        Args:
            images: (batch, channels, height, width), uint8, uint16 or floats in [0, 1], or a list of image files, or of
                Pillow's images, of any size.
            penalty: lambda, for a policy that was trained for a range of lambdas; by default the middle of it. The
                larger it is, the fewer channels are kept.

        Returns:
            Labels, masks and MACs.

        Raises:
            InvalidInputError: If images have a wrong shape, type or range, or if the policy is not for this lambda.
        """
        run = self.run(self.prepare_images(images), penalty)
        output = run.output.float()
        if not output.isfinite().all():
            raise InvalidInputError("The CNN's output is NaN or infinite for some image. Its weights are too large.")
        labels, names, _ = answers(self.info.objective.kind, output, self.classes)
        macs = self.masked.cost.macs(run.mask) + deciding_macs(self.masked, self.policy, run.mask)
        share = macs / self.masked.cost.total_macs
        return Prediction(labels, names, output, run.mask, macs, share)

    def save(self, path: Path | str, int8: bool = False) -> None:
        """Write everything to one safetensors file; ``int8``: see :func:`write_model`."""
        write_model(path, self.masked.network, self.info, self.policy, self.masked, int8=int8)

    def export_onnx(self, path: Path | str, **options: Any) -> Path:
        """Write everything as one ONNX model; options: :func:`prunegym.models.export.onnx_model.export_onnx`."""
        from prunegym.models.export.onnx_model import export_onnx

        return export_onnx(self, path, **options)

    @classmethod
    def load(cls, path: Path | str, network: nn.Module | None = None, device: str = "cpu") -> DynamicCNN:
        """Read a file of :meth:`save`. No code in the file is executed.

        Args:
            path: The file.
            network: The network, with any weights, if it is not in the zoo.
            device: Device of the model.

        Raises:
            MissingDataError: If there is no such file.
            InvalidInputError: If the file is damaged, has a newer format or no policy, or there is no such device.
        """
        where = check_device(device)
        return cls.of(read_model(path, network), path).to(where)

    @classmethod
    def of(cls, model: Bundle, name: Path | str) -> DynamicCNN:
        """Make one from a CNN with its policy.

        Args:
            model: The CNN with its policy.
            name: The model's name, for the message.

        Raises:
            InvalidInputError: If there is no policy.
        """
        if model.policy is None:
            raise InvalidInputError(
                f"{name} is a CNN without a gate policy. Train one with `prunegym train` or `prunegym prepare`."
            )
        return cls(model.masked, model.policy, model.info)


SHIPPED = ("digits",)


def shipped_model(name: str = "digits") -> DynamicCNN:
    """Load a model that comes with PruneGym.

    Raises:
        UnknownNameError: If there is no model with this name.
    """
    return DynamicCNN.load(shipped_path(name))


def shipped_path(name: str) -> Path:
    """Return the file of a model that comes with PruneGym.

    Raises:
        UnknownNameError: If there is no model with this name.
    """
    return Path(__file__).parent / "shipped" / f"{choice('shipped model', name, SHIPPED)}.safetensors"


def _beside(policy: Policy, masked: MaskedCNN) -> Policy:
    """Return a policy on its CNN's device; one on another device, e.g. an agent's on a GPU, is copied."""
    device = masked.device
    there = {value.device for value in (*policy.parameters(), *policy.buffers())}
    return policy if there <= {device} else copy.deepcopy(policy).to(device)
