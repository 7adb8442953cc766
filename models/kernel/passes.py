"""A run of a plan that stops before each decision of an agent."""

from __future__ import annotations

import ctypes
import weakref

from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.kernel import shared_library as native
from prunegym.models.kernel.plan import Plan, as_they_lie, empty_floats, thread_count
from prunegym.validation import whole_number


class Pass:
    """A run of a plan that stops before each decision of an agent, then continues: no masked channel is computed.

    Args:
        plan: Made with :meth:`PlanBuilder.look` before each decision, and no policy.
        batch: Number of images. Memory for all of their maps is kept until the pass is deleted. The images are split
            into groups, for the number of threads that torch has when the pass is made.

    Raises:
        InvalidInputError: If the plan has no stops or has a policy, or the batch is not a whole number above 0.
        KernelError: If there is not enough memory for all maps.
    """

    def __init__(self, plan: Plan, batch: int) -> None:
        if not plan.looks or plan.decides:
            raise InvalidInputError("A pass needs a plan without a policy and with a look() before each decision.")
        self.plan, self.batch = plan, whole_number("batch", batch, 1, native.MAX_IMAGES)
        self._stop = len(plan.looks) + 1  # begin() was not called
        self._error = ctypes.create_string_buffer(native.ERROR_SIZE)
        self._handle = plan.library.prunegym_pass_new(plan.handle, self.batch, thread_count(None), self._error)
        self._check(not self._handle)
        self._finalizer = weakref.finalize(self, plan.library.prunegym_pass_free, self._handle)
        self._finalizer.atexit = False  # see Plan

    def begin(self, images: Tensor, threads: int | None = None) -> Tensor:
        """Start with new images; a run that is not finished is dropped.

        Args:
            images: (batch, channels, height, width) float32 on the CPU.
            threads: None for torch's number.

        Returns:
            The features at the first stop, (batch, ``plan.looks[0]``) float32.

        Raises:
            InvalidInputError: If shape or dtype is wrong.
        """
        images = self.plan.checked_images(images)
        if len(images) != self.batch:
            raise InvalidInputError(f"{len(images)} images; this pass is for {self.batch}.")
        features = empty_floats(self.batch, self.plan.looks[0])
        place, threads = as_they_lie(images), thread_count(threads)
        self._check(
            self.plan.library.prunegym_pass_begin(self._handle, place, features.data_ptr(), threads, self._error)
        )
        self._stop = 0
        return features

    def advance(self, masks: Tensor, threads: int | None = None) -> Tensor:
        """Continue to the next stop, or to the end.

        Args:
            masks: (batch, mask_size) of zeros and ones, any dtype; bits of gates after the next stop are ignored.
            threads: None for torch's number.

        Returns:
            The features at the next stop (batch, its number), or at the end the outputs (batch, outputs), float32.

        Raises:
            InvalidInputError: If the mask has a wrong shape or other values, or :meth:`begin` was not called.
        """
        if self._stop >= len(self.plan.looks):
            raise InvalidInputError("The pass is over, or has not begun. Call begin().")
        used, threads = self.plan.as_bytes(masks, self.batch), thread_count(threads)
        self._stop += 1
        over = self._stop == len(self.plan.looks)
        result = empty_floats(self.batch, self.plan.outputs if over else self.plan.looks[self._stop])
        places = (None, result.data_ptr()) if over else (result.data_ptr(), None)
        self._check(
            self.plan.library.prunegym_pass_advance(self._handle, used.data_ptr(), *places, threads, self._error)
        )
        return result

    def _check(self, failed: bool | int) -> None:
        if failed:
            raise native.KernelError(f"The kernel cannot run {self.batch} images: {self._error.value.decode()}.")
