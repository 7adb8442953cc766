"""A network ready to run in the compiled kernel, and the parameters of a gate's policy."""

from __future__ import annotations

import ctypes
import dataclasses
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.kernel.shared_library import ERROR_SIZE, KINDS, BufferRecord, LayerRecord, ValueRecord, library


@dataclasses.dataclass(frozen=True, eq=False)
class GateHead:
    """A gate's policy: what decides its channels.

    Features of a map (channels, height, width) are, in this order, the channel averages if ``average`` (channels), and
    the averages over a coarse ``grid`` x ``grid`` raster if ``grid`` > 0 (channels * grid * grid, channel by channel,
    cells as in torch's ``adaptive_avg_pool2d``). They become ``(features - mean) / std``, clipped to -10..10, then
    linear, ReLU, linear; a channel is kept iff its logit is above 0.

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
        return channels * (int(self.average) + self.grid**2)


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
            raise MemoryError(f"The kernel could not hold the network: {error.value.decode()}.")
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
            threads: Threads, each taking a share of the images; None for torch's number.

        Returns:
            Outputs (batch, outputs) float32, and the masks that were used, (batch, mask_size) bool: the very tensor
            that was given if it is bool and no gate has a policy.

        Raises:
            InvalidInputError: If a shape or dtype is wrong, masks are missing, or there are no threads.
        """
        return self._run(images, masks, thread_count(threads), None)

    def timed(self, images: Tensor, masks: Tensor | None = None, threads: int = 1) -> dict[str, float]:
        """Run and return the seconds spent in each layer.

        Args:
            images: As in a call.
            masks: As in a call.
            threads: If there are several, for one image, of which they share each layer.

        Raises:
            InvalidInputError: As in a call, and for several threads with several images.
        """
        if threads > 1 and len(images) > 1:
            raise InvalidInputError(
                f"{len(images)} images on {threads} threads may run side by side, and then no layer has a time of its "
                "own. Give threads=1, or one image."
            )
        seconds = (ctypes.c_double * len(self.layers))()
        self._run(images, masks, thread_count(threads), seconds)
        return dict(zip(self.layers, seconds, strict=True))

    def _run(
        self, images: Tensor, masks: Tensor | None, threads: int, seconds: ctypes.Array[ctypes.c_double] | None
    ) -> tuple[Tensor, Tensor]:
        self.check_images(images)
        batch = len(images)
        used = self.as_bytes(masks, batch)
        # Neither images nor masks are copied by torch: from some size on it wakes threads, which then spin for
        # milliseconds on the cores that the kernel's own threads need.
        strides = (ctypes.c_int64 * 4)(*images.stride())
        outputs = torch.empty(batch, self.outputs)
        if batch == 0:
            return outputs, used
        error = ctypes.create_string_buffer(ERROR_SIZE)
        failed = self.library.prunegym_plan_run(
            self.handle, batch, images.data_ptr(), strides, used.data_ptr(), outputs.data_ptr(), threads, seconds,
            error,
        )  # fmt: skip
        if failed:
            raise MemoryError(f"The kernel failed: {error.value.decode()}.")
        return outputs, used

    def check_images(self, images: Tensor) -> None:
        """Raise InvalidInputError for images of another shape, type or place than the plan's."""
        if images.dtype != torch.float32 or images.shape[1:] != self._image_shape or images.device.type != "cpu":
            raise InvalidInputError(
                f"Images are {images.dtype} {tuple(images.shape)} on {images.device}; "
                f"float32 of shape (batch, {', '.join(map(str, self._image_shape))}) on the CPU is needed."
            )

    def as_bytes(self, masks: Tensor | None, batch: int) -> Tensor:
        """Return masks of bytes, one after another, that may be written if a gate has a policy."""
        if masks is None:
            if self._needs_masks:
                raise InvalidInputError(
                    f"Masks of shape ({batch}, {self.mask_size}) are needed: not every gate decides."
                )
            return torch.empty(batch, self.mask_size, dtype=torch.bool)
        if masks.shape != (batch, self.mask_size):
            raise InvalidInputError(
                f"Masks are of shape {tuple(masks.shape)}; ({batch}, {self.mask_size}) is needed, one row an image."
            )
        if masks.dtype == torch.bool and masks.is_cpu:
            ready = not self.decides and masks.is_contiguous()
            return masks if ready else torch.from_numpy(np.array(masks.numpy(), order="C"))
        given = (masks.float() if masks.dtype == torch.bfloat16 else masks).detach().cpu().numpy()
        bits = np.ascontiguousarray(given != 0)
        if not (bits == given).all():
            raise InvalidInputError("Masks have values other than 0 and 1: the kernel keeps a channel or skips it.")
        return torch.from_numpy(bits)


def thread_count(threads: int | None) -> int:
    """Return a number of threads; None stands for torch's.

    Raises:
        InvalidInputError: If it is no whole number of at least 1.
    """
    if threads is None:
        return torch.get_num_threads()
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise InvalidInputError(f"threads is {threads!r}; a whole number of at least 1 is needed, or None for torch's.")
    return threads
