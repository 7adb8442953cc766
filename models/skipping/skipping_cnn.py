"""SkippingCNN: a masked CNN, with or without its policy, run the way that is fastest on this machine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.gating.gate_policy import GatePolicy, check_penalty
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.autotune import Choice, choose, distinct
from prunegym.models.skipping.kernel_path import KernelPath
from prunegym.models.skipping.program.layers import Program
from prunegym.models.skipping.program.lowering import UnsupportedError, lower
from prunegym.models.skipping.program.path import (
    Executed,
    MaskedPath,
    Path,
    Policy,
    decide_first,
    decides_gate_by_gate,
)
from prunegym.models.skipping.self_check import check
from prunegym.models.skipping.torch_paths.full import FullPath
from prunegym.models.skipping.torch_paths.gather import GatherPath

EXECUTIONS = ("auto", "kernel", "torch", "full", "masked")
"""Ways of running: ``kernel`` and ``torch`` skip; ``full`` computes all channels, with norms folded;
``masked`` is :class:`MaskedCNN` itself; ``auto`` takes the fastest of the first three, measured on the first images."""

_MEASURED = [name for name in EXECUTIONS if name not in ("auto", "masked")]
_MEASURED_IMAGES = 32


def prefer_kernel(masked: MaskedCNN, policy: Policy | None = None) -> SkippingCNN:
    """Return what runs a CNN in the kernel, or as it is where the kernel cannot; nothing is measured."""
    try:
        return SkippingCNN(masked, policy, "kernel")
    except InvalidInputError:
        return SkippingCNN(masked, policy, "masked")


class SkippingCNN:
    """Runs a masked CNN so that masked channels cost as little time as they can.

    All ways give the results of ``masked(images, mask)``, or of ``rollout(masked, policy, images)``, up to rounding. It
    is for inference: no gradients, eval mode, and the weights are those at the time of construction.

    Args:
        masked: The CNN.
        policy: Decides the masks; None: they are given with the images.
        execution: One of :data:`EXECUTIONS`.

    Attributes:
        execution: As asked for.
        unavailable: For each other way the reason why not.
        choices: What ``auto`` took for which size of batch, with the times.

    Raises:
        UnknownNameError: If there is no such way.
        InvalidInputError: If the way cannot run this network here.

    Example:
        >>> from prunegym.models import build
        >>> masked = MaskedCNN(build("simple-cnn"), torch.zeros(1, 3, 32, 32))
        >>> fast = SkippingCNN(masked)
        >>> fast(torch.zeros(2, 3, 32, 32), torch.ones(2, 48)).output.shape
        torch.Size([2, 10])
    """

    def __init__(self, masked: MaskedCNN, policy: Policy | None = None, execution: str = "auto") -> None:
        if execution not in EXECUTIONS:
            raise UnknownNameError("execution", execution, EXECUTIONS)
        self.masked, self.policy, self.execution = masked, policy, execution
        self._shape, self._dtype = masked.image_shape, masked.dtype
        self.choices: list[Choice] = []
        self.unavailable: dict[str, str] = {}
        self._on_the_way = decides_gate_by_gate(policy)
        self._paths: dict[str, Path] = {}
        self._make_paths()
        if execution != "auto" and execution not in self._paths:
            raise InvalidInputError(
                f"Execution {execution!r} cannot run this network here: {self.unavailable[execution]} "
                f"These can: {', '.join(self.available)}; 'auto' takes the fastest."
            )

    @property
    def available(self) -> tuple[str, ...]:
        """Ways that can run this network here."""
        return tuple(self._paths)

    def _make_paths(self) -> None:
        # A policy that decides everything at once is asked before; gate by gate it is part of the path.
        policy = self.policy if isinstance(self.policy, GatePolicy) and self._on_the_way else None
        program: Program | None = None
        for name in _MEASURED if self.execution == "auto" else {self.execution} - {"masked"}:
            try:
                program = lower(self.masked) if program is None else program
                self._paths[name] = _made(name, program, self.masked, policy)
            except UnsupportedError as error:
                self.unavailable[name] = str(error)
        if not self._paths or self.execution in ("auto", "masked"):
            self._paths["masked"] = MaskedPath(self.masked, policy)

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
        if mask is None and not self._on_the_way:
            mask = self._masks_before(images, penalty)
        bits = mask
        if mask is not None and (mask.dtype != torch.bool or mask.device != images.device):
            bits = mask.to(device=images.device, dtype=torch.bool)
        if len(images) == 0:
            return MaskedPath(self.masked, self.policy).run(images, bits, penalty)
        return self._paths[self.way(images, bits, penalty)].run(images, bits, penalty)

    def _masks_before(self, images: Tensor, penalty: float | None) -> Tensor:
        """Return the masks (batch, mask_size) of a policy that decides everything at once; without one all ones."""
        if self.policy is None:
            return torch.ones(len(images), self.masked.mask_size, dtype=torch.bool, device=images.device)
        return decide_first(self.masked, self.policy, images, penalty)

    def path(self, name: str) -> Path:
        """Return a way that is available, by name."""
        return self._paths[name]

    def way(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> str:
        """Return the name of the way to run a batch; ``auto`` measures if it has not done so for such a batch."""
        if self.execution != "auto":
            return self.execution
        size = min(len(images), _MEASURED_IMAGES)
        part = None if mask is None else mask[:size]
        masks = distinct(part)
        key = (size.bit_length(), torch.get_num_threads(), masks.bit_length())
        for choice in self.choices:
            if choice.key == key:
                return choice.execution
        # Of the masked CNN itself the same network with norms folded is a faster form.
        paths = {name: path for name, path in self._paths.items() if name != "masked" or len(self._paths) == 1}
        self.choices.append(choose(paths, images[:size], part, penalty, masks))
        return self.choices[-1].execution

    def _check(self, images: Tensor, mask: Tensor | None) -> None:
        if not isinstance(images, Tensor) or images.shape[1:] != self._shape or images.dtype != self._dtype:
            given = (
                f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
            )
            raise InvalidInputError(
                f"Images are {given}; a tensor of normalised {self._dtype} of shape (batch, "
                f"{', '.join(map(str, self._shape))}) is needed, the size that the CNN was masked for."
            )
        if mask is None:
            return
        self.masked.check_mask(mask, len(images))
        if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
            raise InvalidInputError("The mask has values other than 0 and 1: a channel is kept or skipped.")


def _made(name: str, program: Program, masked: MaskedCNN, policy: GatePolicy | None) -> Path:
    """Return a way that has been tried.

    Raises:
        UnsupportedError: If it cannot run the network, or does not give the masked CNN's results.
    """
    makers: dict[str, Callable[[], Path]] = {
        "kernel": lambda: KernelPath(program, policy),
        "torch": lambda: GatherPath(program, policy),
        "full": lambda: FullPath(program, policy),
    }
    made = makers[name]()
    check(made, masked, policy)
    return made
