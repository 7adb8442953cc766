"""Forward passes that stop before each decision, for an external agent: the CNN side of the environments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.kernel import Pass, Plan
from prunegym.models.masking.forward_pass import ForwardPass
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.skipping.kernel_path import KernelPath
from prunegym.models.skipping.program.lowering import UnsupportedError, lower
from prunegym.models.skipping.program.path import Executed, MaskedPath, check_outputs
from prunegym.models.skipping.translation import translate
from prunegym.validation import choice

CHUNK = 64
"""Images that run through :class:`MaskedCNN` together on the CPU: for larger maps each layer gets new memory from the
system, which takes as long as half of the computation (512 images of 32x32 through ResNet-20)."""


class MaskedPass:
    """A forward pass of a batch that stops before each decision. Every channel is computed; masked ones are set to 0.

    Args:
        masked: The CNN.
        features: The inputs of decisions.

    Attributes:
        logits: The CNN's output (batch, ...), once all gates are decided.
    """

    name = MaskedPath.name

    def __init__(self, masked: MaskedCNN, features: MaskFeatures) -> None:
        self.logits: Tensor | None = None
        self._masked, self._features = masked, features
        self._states: list[ForwardPass] = []
        self._decision = 0

    def begin(self, images: Tensor) -> Tensor:
        """Start with normalised images (batch, channels, height, width).

        Returns:
            The features of the first decision, (batch, sizes[0]) float32, standardised and clipped.
        """
        self._chunk = CHUNK if images.device.type == "cpu" else len(images)
        self._decision, self.logits = 0, None
        self._states = [self._masked.begin(some) for some in torch.split(images, self._chunk)]
        return self._look()

    def advance(self, mask: Tensor) -> Tensor | None:
        """Continue after a decision.

        Args:
            mask: (batch, mask_size) of 0 and 1; the bits of gates that are not decided yet are ignored.

        Returns:
            The features of the next decision, or None at the end.
        """
        for state, rows in zip(self._states, torch.split(mask, self._chunk), strict=True):
            parts = self._masked.split(rows)
            for gate in self._features.decisions[self._decision].gates:
                self._masked.advance(state, parts[gate])
        self._decision += 1
        if self._decision < len(self._features.decisions):
            return self._look()
        self.logits = torch.cat([state.logits for state in self._states if state.logits is not None])
        return None

    def _look(self) -> Tensor:
        reads = [state.reads for state in self._states if state.reads is not None]
        return torch.cat([self._features(self._decision, some) for some in reads])


class KernelPass:
    """See :class:`MaskedPass`. The compiled kernel computes only kept channels.

    Args:
        masked: The CNN, float32 on the CPU.
        features: The inputs of decisions.

    Raises:
        UnsupportedError: If the kernel cannot run it, or is not available.
    """

    name = KernelPath.name

    def __init__(self, masked: MaskedCNN, features: MaskFeatures) -> None:
        if type(features) is not MaskFeatures:
            raise UnsupportedError(f"the kernel may not support all features of {type(features).__name__}.")
        self.logits: Tensor | None = None
        self._masked, self._features = masked, features
        self._images: Tensor | None = None
        self._plan: Plan | None = None
        self._seen: list[tuple[int, int]] = []
        self._pass: Pass | None = None
        check_outputs(self.run, masked)
        self._pass, self._images, self.logits, self._decision = None, None, None, 0  # no pass is running

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles, without the kernel's memory: a copy runs the pass again."""
        return {**self.__dict__, "_plan": None, "_pass": None}

    def _weights(self) -> list[tuple[int, int]]:
        """Return counters that change with each weight; the plan has copies of all weights."""
        modules = (self._masked.network, self._features)
        values = [value for module in modules for value in (*module.parameters(), *module.buffers())]
        values += [] if self._masked.constants is None else [self._masked.constants]
        # Tensors that were created in inference mode do not count their changes; they are assumed not to change.
        return [(value.data_ptr(), 0 if value.is_inference() else value._version) for value in values]

    def begin(self, images: Tensor) -> Tensor:
        """See :class:`MaskedPass`."""
        weights = self._weights()
        if self._plan is None or self._seen != weights:
            program = lower(self._masked)
            self._plan, self._output = translate(program, looks=self._features).plan, program.output_shape
            self._seen, self._pass = weights, None
        if self._pass is None or self._pass.batch != len(images):
            self._pass = Pass(self._plan, len(images))
        self._images, self._decision, self.logits = images, 0, None
        return self._pass.begin(images)

    def advance(self, mask: Tensor) -> Tensor | None:
        """See :class:`MaskedPass`."""
        result = self._under_way(mask).advance(mask)
        self._decision += 1
        if self._decision < len(self._features.decisions):
            return result
        self.logits = result.view(len(result), *self._output)
        return None

    def run(self, images: Tensor, mask: Tensor | None, penalty: float | None) -> Executed:  # noqa: ARG002
        """Run images with known masks from beginning to end, as an execution path does."""
        assert mask is not None
        self.begin(images)
        while self.logits is None:
            self.advance(mask)
        return Executed(self.logits, mask)

    def _under_way(self, mask: Tensor) -> Pass:
        """Return the kernel's pass; a copy first runs up to the position of the original."""
        if self._pass is None:
            assert self._images is not None
            decided = self._decision
            self.begin(self._images)
            for _ in range(decided):
                self.advance(mask)
        assert self._pass is not None
        return self._pass


StepwisePass = MaskedPass | KernelPass
STEPWISE = ("auto", KernelPass.name, MaskedPass.name)
"""``kernel`` computes only kept channels, ``masked`` computes all, ``auto`` uses the kernel if it can run the CNN."""


def stepwise_pass(masked: MaskedCNN, features: MaskFeatures, execution: str = "auto") -> StepwisePass:
    """Return a forward pass, which can be started any number of times.

    Args:
        masked: The CNN. Changes of its weights take effect.
        features: The inputs of decisions.
        execution: One of :data:`STEPWISE`.

    Raises:
        UnknownNameError: If there is no such execution.
        InvalidInputError: If ``execution`` is ``kernel`` and the kernel cannot run this.
    """
    choice("execution", execution, STEPWISE)
    if execution == MaskedPass.name:
        return MaskedPass(masked, features)
    try:
        return KernelPass(masked, features)
    except UnsupportedError as error:
        if execution == "auto":
            return MaskedPass(masked, features)
        raise InvalidInputError(f"Execution {execution!r} cannot run this here: {error} Use 'auto'.") from error
