"""A plan, which is a network ready to run in the compiled kernel."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.kernel import shared_library as native
from prunegym.validation import bits, is_whole_mask, shape, whole_number


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


class Plan:
    """A network in the kernel's memory. Made by :meth:`PlanBuilder.build`; safe to call from several threads.

    Attributes:
        variant: The compiled variant that runs it; two if some layers are on bytes or bfloat16.
        layers: Names of the layers, in the order of their times in :meth:`timed`.
        mask_size: Mask bits of all gates.
        decides: Whether a gate has a policy.
        looks: Number of features at each stop of a :class:`~prunegym.models.kernel.passes.Pass`.
        inputs: Shapes of what it reads for one image: that of the images, and of each further input.
        outputs: Numbers returned for each image.
    """

    def __init__(
        self,
        variants: Sequence[str | None],
        buffers: Sequence[native.BufferRecord],
        values: Sequence[native.ValueRecord],
        widths: Sequence[int],
        spaces: Sequence[Sequence[int]],
        records: Sequence[native.LayerRecord],
    ) -> None:
        chosen = native.choose_variants(variants)
        error = ctypes.create_string_buffer(native.ERROR_SIZE)
        self.library = native.library()
        rows = [native.SpaceRecord(len(row), (ctypes.c_int32 * len(row))(*row)) for row in spaces]
        network = native.NetworkRecord(
            *(len(buffers), len(values), len(widths), len(spaces), len(records)),
            *((native.BufferRecord * len(buffers))(*buffers), (native.ValueRecord * len(values))(*values)),
            *((ctypes.c_int32 * len(widths))(*widths), (native.SpaceRecord * len(rows))(*rows)),
            (native.LayerRecord * len(records))(*records),
        )
        self.handle = self.library.prunegym_plan_new(*(name.encode() for name in chosen), network, error)
        if not self.handle:
            raise native.KernelError(f"The kernel cannot hold the network: {error.value.decode()}.")
        kinds = [native.KINDS[record.kind] for record in records]
        self.mask_size = sum(widths)
        zeros = {value.zero for value in values}
        there = (True, max(zeros) >= 0, native.PAIRS in zeros)
        self.variant = ", ".join(name for name, used in zip(chosen, there, strict=True) if used)
        shapes = [_shape(values[max(record.input, record.output)], buffers) for record in records]
        pairs = list(zip(records, shapes, kinds, strict=True))
        sizes = [record.offset + math.prod(shape) for record, shape, kind in pairs if kind == "store"]
        self.outputs = max(sizes)
        self.inputs = tuple(shape for shape, kind in zip(shapes, kinds, strict=True) if kind == "load")
        self.layers = tuple(f"{index} {kind}" for index, kind in enumerate(kinds))
        looks = (record for record, kind in zip(records, kinds, strict=True) if kind == "look")
        self.looks = tuple(values[look.input].channels * (look.average + look.grid**2) for look in looks)
        self.decides, self._needs_masks = "decide" in kinds, kinds.count("decide") < len(widths)
        self._places = native.Images * len(self.inputs)
        self._finalizer = weakref.finalize(self, self.library.prunegym_plan_free, self.handle)
        self._finalizer.atexit = False  # a daemon thread may still be running it

    def __call__(
        self, images: Tensor | Sequence[Tensor], masks: Tensor | None = None, threads: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the network.

        Args:
            images: (batch, channels, height, width) float32 on the CPU; one tensor for each input if there are several,
                vectors (batch, channels).
            masks: (batch, mask_size) of zeros and ones, any dtype; the bits of gates with a policy are ignored. May be
                left out where every gate has a policy.
            threads: From 1 to 1024, each with a share of the images; None for torch's number.

        Returns:
            Outputs (batch, outputs) float32, and the masks that were used, (batch, mask_size) bool. If you gave a
            contiguous bool mask and no gate has a policy, it is that tensor itself.

        Raises:
            InvalidInputError: If a shape, a dtype or the number of threads is wrong, or masks are missing.
            KernelError: If there is not enough memory.
        """
        return self._run(images, masks, thread_count(threads), None)

    def timed(
        self, images: Tensor | Sequence[Tensor], masks: Tensor | None = None, threads: int = 1
    ) -> dict[str, float]:
        """Run and return the seconds spent in each layer.

        Args:
            images: As for ``__call__``.
            masks: As for ``__call__``.
            threads: Several threads share each layer of one image.

        Raises:
            InvalidInputError: As for ``__call__``, and for several threads with several images.
        """
        threads = thread_count(threads)
        batch = len(images if isinstance(images, Tensor) else images[0])
        if threads > 1 and batch > 1:
            raise InvalidInputError(
                f"{batch} images on {threads} threads may run in parallel, so layers cannot be timed. "
                "Give threads=1, or one image."
            )
        seconds = (ctypes.c_double * len(self.layers))()
        self._run(images, masks, threads, seconds)
        return dict(zip(self.layers, seconds, strict=True))

    def _run(
        self,
        images: Tensor | Sequence[Tensor],
        masks: Tensor | None,
        threads: int,
        seconds: ctypes.Array[ctypes.c_double] | None,
    ) -> tuple[Tensor, Tensor]:
        given = [images] if isinstance(images, Tensor) else list(images)
        if len(given) != len(self.inputs):
            raise InvalidInputError(f"{len(given)} inputs; the plan reads {len(self.inputs)}.")
        given = [self.checked_images(value, place) for place, value in enumerate(given)]
        batch = len(given[0])
        if any(len(value) != batch for value in given):
            raise InvalidInputError(f"The inputs have {[len(value) for value in given]} images; give as many of each.")
        used = self.as_bytes(masks, batch)
        outputs = empty_floats(batch, self.outputs)
        if batch == 0:
            return outputs, used
        error = ctypes.create_string_buffer(native.ERROR_SIZE)
        places = self._places(*map(as_they_lie, given))
        failed = self.library.prunegym_plan_run(
            self.handle, batch, places, used.data_ptr(), outputs.data_ptr(), threads, seconds, error
        )
        if failed:
            raise native.KernelError(f"The kernel cannot run {batch} images: {error.value.decode()}.")
        return outputs, used

    def checked_images(self, images: Tensor, place: int = 0) -> Tensor:
        """Return images, or another input by its place, whose memory can be read as it is.

        Raises:
            InvalidInputError: If they are of another shape, dtype or layout than the plan's, on another device, or too
                many.
        """
        if images.dtype != torch.float32 or images.layout != torch.strided or not images.is_cpu:
            found = f"{images.dtype}, {images.layout} on {images.device}"
            raise InvalidInputError(f"Images are {found}; dense float32 on the CPU is needed.")
        if images.shape[1:] != self.inputs[place]:  # the check itself takes longer, and a small network microseconds
            shape("Images" if place == 0 else f"Input {place}", images, ("batch", *self.inputs[place]))
        if len(images) > native.MAX_IMAGES:
            whole_number("The number of images", len(images), 0, native.MAX_IMAGES, "Use smaller batches.")
        # Else a view like x.conj().imag would be read with the wrong sign.
        return images.resolve_neg() if images.is_neg() else images

    def as_bytes(self, masks: Tensor | None, batch: int) -> Tensor:
        """Return contiguous bool masks; a copy if a gate has a policy, since the kernel then writes to them."""
        if masks is None:
            if self._needs_masks:
                raise InvalidInputError(
                    f"Masks of shape ({batch}, {self.mask_size}) are needed, because some gates have no policy."
                )
            return torch.empty(batch, self.mask_size, dtype=torch.bool, device="cpu")
        if is_whole_mask(masks, batch, self.mask_size) and masks.is_contiguous():
            return masks.clone() if self.decides else masks
        shape("The mask", masks, (batch, self.mask_size), "Give one row for each image.")
        if masks.layout != torch.strided or masks.is_meta:
            raise InvalidInputError(f"masks is {masks.layout} on {masks.device}; a dense tensor with values is needed.")
        if masks.dtype != torch.bool:
            masks = bits("The mask", masks.detach(), "1 keeps a channel, 0 skips it.") != 0
        masks = masks.cpu().contiguous()
        return masks.clone() if self.decides else masks


def _shape(value: native.ValueRecord, buffers: Sequence[native.BufferRecord]) -> tuple[int, ...]:
    """Return the shape of a value for one image, all channels counted."""
    buffer = buffers[value.buffer]
    return (value.channels, buffer.height, buffer.width) if buffer.stride else (value.channels,)


def thread_count(threads: int | None) -> int:
    """Return a number of threads; None means torch's.

    Raises:
        InvalidInputError: If it is not a whole number from 1 to 1024.
    """
    if threads is None:
        return min(torch.get_num_threads(), native.MAX_THREADS)
    return whole_number("threads", threads, 1, native.MAX_THREADS, "None means torch's number.")


def as_they_lie(images: Tensor) -> native.Images:
    """Return the addresses of checked images in memory.

    Torch must not copy images or masks: for large ones it wakes its threads, which then spin for milliseconds on the
    cores that the kernel's own threads need.
    """
    return native.Images(images.data_ptr(), *images.stride(), *(0,) * (4 - images.ndim))


def empty_floats(*sizes: int) -> Tensor:
    """Return memory that the kernel writes to, whatever torch's default dtype and device are."""
    return torch.empty(sizes, dtype=torch.float32, device="cpu")
