"""SkippingCNN: a masked CNN, with or without its policy, run by the path that is fastest on this machine."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.gating.gate_policy import GatePolicy, check_penalty
from prunegym.models.gating.static_policy import Policy
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.autotune import ExecutionChoice, distinct, fastest_path
from prunegym.models.skipping.kernel_path import KernelPath
from prunegym.models.skipping.program.lowering import UnsupportedError, lower
from prunegym.models.skipping.program.path import (
    Executed,
    ExecutionPath,
    MaskedPath,
    check_outputs,
    decide_first,
    decides_gate_by_gate,
)
from prunegym.models.skipping.torch_paths.full import FullPath
from prunegym.models.skipping.torch_paths.gather import GatherPath
from prunegym.validation import bits, choice, shape

PATHS: tuple[type[ExecutionPath], ...] = (KernelPath, GatherPath, FullPath, MaskedPath)
"""All execution paths. To add one, write its class and name it here."""

EXECUTIONS = ("auto", *(path.name for path in PATHS))
"""Names of the execution paths: ``kernel`` and ``torch`` skip masked channels; ``full`` computes all channels, with
norms folded; ``masked`` is :class:`MaskedCNN` itself; ``auto`` takes the fastest of the first three, measured on the
first images."""

_MEASURED_IMAGES = 32


def prefer_kernel(masked: MaskedCNN, policy: Policy | None = None) -> SkippingCNN:
    """Return what runs a CNN in the kernel, or in :class:`MaskedCNN` where the kernel cannot; nothing is measured."""
    try:
        return SkippingCNN(masked, policy, KernelPath.name)
    except InvalidInputError:
        return SkippingCNN(masked, policy, MaskedPath.name)


class SkippingCNN:
    """Runs a masked CNN so that masked channels cost as little time as they can.

    All paths give the results of ``masked(images, mask)``, or of ``rollout(masked, policy, images)``, up to rounding.
    It is for inference: no gradients, eval mode. Weights are copied when it is made; later changes are not seen.

    Args:
        masked: The CNN.
        policy: Decides the masks; None: they are given with the images.
        execution: One of :data:`EXECUTIONS`.

    Attributes:
        execution: As given.
        unavailable: For each path that cannot run this network here, the reason.
        choices: Which path ``auto`` chose for which size of batch, with the times.

    Raises:
        UnknownNameError: If there is no such execution.
        InvalidInputError: If the path cannot run this network here.

    Example:
        >>> from prunegym.models import build
        >>> masked = MaskedCNN(build("simple-cnn"), torch.zeros(1, 3, 32, 32))
        >>> fast = SkippingCNN(masked)
        >>> fast(torch.zeros(2, 3, 32, 32), torch.ones(2, 48)).output.shape
        torch.Size([2, 10])
    """

    def __init__(self, masked: MaskedCNN, policy: Policy | None = None, execution: str = "auto") -> None:
        self.execution = choice("execution", execution, EXECUTIONS)
        self.masked, self.policy = masked, policy
        self._shape, self._dtype = masked.image_shape, masked.dtype
        self.choices: list[ExecutionChoice] = []
        self.unavailable: dict[str, str] = {}
        self._gate_by_gate = decides_gate_by_gate(policy)
        self._paths: dict[str, ExecutionPath] = {}
        # A policy that decides everything at once is asked before; gate by gate it is part of the path.
        inside = policy if isinstance(policy, GatePolicy) and self._gate_by_gate else None
        program = functools.cache(functools.partial(lower, masked))
        for kind in PATHS:
            if execution not in ("auto", kind.name):
                continue
            try:
                path = kind.make(masked, program, inside)
                if kind is not MaskedPath:  # the reference itself
                    check_outputs(path.run, masked, inside)
                self._paths[kind.name] = path
            except UnsupportedError as error:
                self.unavailable[kind.name] = str(error)
        if not self._paths:
            raise InvalidInputError(
                f"Execution {execution!r} cannot run this network here: {self.unavailable[execution]} "
                f"{MaskedPath.name!r} can, and 'auto' takes the fastest path that can."
            )

    @property
    def available(self) -> tuple[str, ...]:
        """Names of the paths that can run this network here."""
        return tuple(self._paths)

    def __call__(self, images: Tensor, mask: Tensor | None = None, penalty: float | None = None) -> Executed:
        """Run images.

        Args:
            images: (batch, channels, height, width) float, normalised, of the size that the CNN was built for.
            mask: (batch, mask_size) of 0 and 1, any dtype; None lets the policy decide, or without one keeps all.
            penalty: lambda, for a policy with a ``penalty_range``.

        Returns:
            The output (batch, ...) and the masks that were used.

        Raises:
            InvalidInputError: If a shape is wrong, a mask has other values, or the policy is for no such lambda.
        """
        self._check(images, mask)
        if penalty is not None and self.policy is not None:
            check_penalty(self.policy.penalty_range, penalty)
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self._run(images, mask, penalty)
        return self._run(images, mask, penalty)

    def _run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:
        if mask is None and self.policy is None:
            mask = torch.ones(len(images), self.masked.mask_size, dtype=torch.bool, device=images.device)
        elif mask is None and self.policy is not None and not self._gate_by_gate:  # all at once, before the path
            mask = decide_first(self.masked, self.policy, images, penalty)
        if mask is not None and (mask.dtype != torch.bool or mask.device != images.device):
            mask = mask.to(device=images.device, dtype=torch.bool)
        if len(images) == 0:
            return MaskedPath(self.masked, self.policy).run(images, mask, penalty)
        return self._paths[self.way(images, mask, penalty)].run(images, mask, penalty)

    def path(self, name: str) -> ExecutionPath:
        """Return an available path by name."""
        return self._paths[name]

    def way(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> str:
        """Return the name of the path for a batch; ``auto`` measures if it has not done so for such a batch."""
        if self.execution != "auto":
            return self.execution
        size = min(len(images), _MEASURED_IMAGES)
        part = None if mask is None else mask[:size]
        masks = distinct(part)
        key = (size.bit_length(), torch.get_num_threads(), masks.bit_length())
        for earlier in self.choices:
            if earlier.key == key:
                return earlier.execution
        measured = {name: path for name, path in self._paths.items() if path.measured}
        self.choices.append(fastest_path(measured or self._paths, images[:size], part, penalty, masks))
        return self.choices[-1].execution

    def _check(self, images: Tensor, mask: Tensor | None) -> None:
        if not isinstance(images, Tensor) or images.dtype != self._dtype:
            given = images.dtype if isinstance(images, Tensor) else f"a {type(images).__name__}"
            raise InvalidInputError(f"Images are {given}; a tensor of normalised {self._dtype} is needed.")
        if images.shape[1:] != self._shape:  # the check itself takes longer, and a small network microseconds
            shape("Images", images, ("batch", *self._shape), "That is the size that the CNN was masked for.")
        if mask is not None:
            self.masked.check_mask(mask, len(images))
        if mask is not None and mask.dtype != torch.bool:
            bits("The mask", mask, "A channel is kept or skipped.")
