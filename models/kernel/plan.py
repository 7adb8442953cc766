"""A plan, which is a network ready to run in the compiled kernel, and the parameters of a gate's policy."""

from __future__ import annotations

import ctypes
import dataclasses
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.kernel.shared_library import (
    ERROR_SIZE,
    KINDS,
    MAX_IMAGES,
    MAX_THREADS,
    BufferRecord,
    KernelError,
    LayerRecord,
    ValueRecord,
    library,
)
from prunegym.validation import shape, whole_number


@dataclasses.dataclass(frozen=True, eq=False)
class GateHead:
    """The parameters of a gate's policy.

    The features of a map (channels, height, width) are the channel averages if ``average`` (channels), then the
    averages over a coarse ``grid`` x ``grid`` raster if ``grid`` > 0 (channels * grid * grid, channel by channel, cells
    as in torch's ``adaptive_avg_pool2d``). They become ``(features - mean) / std``, clipped to -10..10. A linear layer,
    ReLU and a second linear layer give one logit for each channel; a channel is kept if its logit is above 0.

    Attributes:
        mean: (features).
        std: (features), positive.
        weight1: (hidden, features).
        bias1: (hidden).
        weight2: (width, hidden).
        bias2: (width).
        average: Whether channel averages are features.
        grid: Side of the raster, 0 for none.
    """

    mean: Tensor
    std: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
    average: bool = True
    grid: int = 0

    def features(self, channels: int) -> int:
        """Number of features of a map of so many channels."""
        return channels * (int(bool(self.average)) + self.grid**2)


class Plan:
    """A network in the kernel's memory. Made by :meth:`PlanBuilder.build`; safe to call from several threads.

    Attributes:
        variant: The compiled variant that runs it.
        layers: Names of the layers, in the order of their times in :meth:`timed`.
        mask_size: Mask bits of all gates.
        decides: Whether a gate has a policy.
        looks: Number of features at each stop of a :class:`~prunegym.models.kernel.passes.Pass`.
        outputs: Numbers returned for each image.
    """

    def __init__(
        self,
        variant: str,
        buffers: Sequence[BufferRecord],
        values: Sequence[ValueRecord],
        widths: Sequence[int],
        records: Sequence[LayerRecord],
        *,
        layers: Sequence[str],
        image_shape: tuple[int, int, int],
        outputs: int,
        needs_masks: bool,
        looks: Sequence[int] = (),
    ) -> None:
        self.variant, self.layers, self.outputs = variant, tuple(layers), outputs
        self.mask_size, self.looks = sum(widths), tuple(looks)
        self._image_shape, self._needs_masks = image_shape, needs_masks
        self.decides = any(record.kind == KINDS.index("decide") for record in records)
        error = ctypes.create_string_buffer(ERROR_SIZE)
        self.library = library()
        self.handle = self.library.prunegym_plan_new(
            variant.encode(),
            *(len(buffers), (BufferRecord * len(buffers))(*buffers)),
            *(len(values), (ValueRecord * len(values))(*values)),
            *(len(widths), (ctypes.c_int32 * len(widths))(*widths)),
            *(len(records), (LayerRecord * len(records))(*records)),
            error,
        )
        if not self.handle:
            raise KernelError(f"The kernel cannot hold the network: {error.value.decode()}.")
        self._finalizer = weakref.finalize(self, self.library.prunegym_plan_free, self.handle)
        self._finalizer.atexit = False  # a daemon thread may still be running it

    def __call__(
        self, images: Tensor, masks: Tensor | None = None, threads: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the network.

        Args:
            images: (batch, channels, height, width) float32 on the CPU.
            masks: (batch, mask_size) of zeros and ones, any dtype; the bits of gates with a policy are ignored. May be
                left out where every gate has a policy.
            threads: From 1 to 1024, each taking a share of the images; None for torch's number.

        Returns:
            Outputs (batch, outputs) float32, and the masks that were used, (batch, mask_size) bool. If you gave a
            contiguous bool mask and no gate has a policy, it is that tensor itself.

        Raises:
            InvalidInputError: If a shape, a dtype or the number of threads is wrong, or masks are missing.
            KernelError: If there is not enough memory.
        """
        return self._run(images, masks, thread_count(threads), None)

    def timed(self, images: Tensor, masks: Tensor | None = None, threads: int = 1) -> dict[str, float]:
        """Run and return the seconds spent in each layer.

        Args:
            images: As in a call.
            masks: As in a call.
            threads: Several threads share each layer of one image.

        Raises:
            InvalidInputError: As in a call, and for several threads with several images.
        """
        threads = thread_count(threads)
        if threads > 1 and len(images) > 1:
            raise InvalidInputError(
                f"{len(images)} images on {threads} threads may run side by side, and then no layer has a time of its "
                "own. Give threads=1, or one image."
            )
        seconds = (ctypes.c_double * len(self.layers))()
        self._run(images, masks, threads, seconds)
        return dict(zip(self.layers, seconds, strict=True))

    def _run(
        self, images: Tensor, masks: Tensor | None, threads: int, seconds: ctypes.Array[ctypes.c_double] | None
    ) -> tuple[Tensor, Tensor]:
        images = self.checked_images(images)
        batch = len(images)
        used = self.as_bytes(masks, batch)
        # Torch must not copy images or masks: for large ones it wakes its threads, which then spin for milliseconds
        # on the cores that the kernel's own threads need.
        strides = (ctypes.c_int64 * 4)(*images.stride())
        outputs = empty_floats(batch, self.outputs)
        if batch == 0:
            return outputs, used
        error = ctypes.create_string_buffer(ERROR_SIZE)
        failed = self.library.prunegym_plan_run(
            self.handle, batch, images.data_ptr(), strides, used.data_ptr(), outputs.data_ptr(), threads, seconds,
            error,
        )  # fmt: skip
        if failed:
            raise KernelError(f"The kernel cannot run {batch} images: {error.value.decode()}.")
        return outputs, used

    def checked_images(self, images: Tensor) -> Tensor:
        """Return images whose memory can be read as it is.

        Raises:
            InvalidInputError: If they are of another shape, dtype or layout than the plan's, on another device, or too
                many.
        """
        if (
            images.dtype != torch.float32
            or images.shape[1:] != self._image_shape
            or images.device.type != "cpu"
            or images.layout != torch.strided
        ):
            raise InvalidInputError(
                f"Images are {images.dtype} {tuple(images.shape)}, {images.layout} on {images.device}; dense "
                f"float32 of shape (batch, {', '.join(map(str, self._image_shape))}) on the CPU is needed."
            )
        whole_number("The number of images", len(images), 0, MAX_IMAGES, "Use smaller batches.")
        return images.resolve_neg()  # else a view like x.conj().imag would be read with the wrong sign

    def as_bytes(self, masks: Tensor | None, batch: int) -> Tensor:
        """Return contiguous bool masks; a copy if a gate has a policy, since the kernel then writes to them."""
        if masks is None:
            if self._needs_masks:
                raise InvalidInputError(
                    f"Masks of shape ({batch}, {self.mask_size}) are needed: not every gate decides."
                )
            return torch.empty(batch, self.mask_size, dtype=torch.bool, device="cpu")
        shape("The mask", masks, (batch, self.mask_size), "Give one row for each image.")
        if masks.dtype == torch.bool and masks.is_cpu:
            ready = not self.decides and masks.is_contiguous()
            return masks if ready else torch.from_numpy(np.array(masks.numpy(), order="C"))
        if masks.layout != torch.strided or masks.is_meta:
            raise InvalidInputError(f"masks is {masks.layout} on {masks.device}; a dense tensor with values is needed.")
        numpy_has_it = not masks.is_floating_point() or masks.dtype in (torch.float16, torch.float32, torch.float64)
        given = (masks if numpy_has_it else masks.float()).detach().cpu().resolve_conj().resolve_neg().numpy()
        bits = np.ascontiguousarray(given != 0)
        if not (bits == given).all():
            raise InvalidInputError("Masks have values other than 0 and 1: the kernel keeps a channel or skips it.")
        return torch.from_numpy(bits)


def thread_count(threads: int | None) -> int:
    """Return a number of threads; None stands for torch's.

    Raises:
        InvalidInputError: If it is not a whole number from 1 to 1024.
    """
    if threads is None:
        return min(torch.get_num_threads(), MAX_THREADS)
    return whole_number("threads", threads, 1, MAX_THREADS, "None takes torch's number.")


def empty_floats(*sizes: int) -> Tensor:
    """Return memory that the kernel writes to, whatever torch's default dtype and device are."""
    return torch.empty(sizes, dtype=torch.float32, device="cpu")
