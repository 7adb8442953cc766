"""MaskedCNN: a CNN with one mask bit for each channel that can be masked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.html import table
from prunegym.models.masking.compensation import COMPENSATIONS, checked_constants, readers
from prunegym.models.masking.cost import CostModel
from prunegym.models.masking.forward_pass import ForwardPass, Segments, check_floats
from prunegym.models.masking.gates import Bits, Gate, GateFinder, choose_gates, wanted_names
from prunegym.models.masking.graph import Graph, Step, attribute_of, first_values
from prunegym.models.masking.layouts import Layout, as_map, layouts
from prunegym.models.masking.recording.proof import check_same
from prunegym.models.masking.recording.tracing import (
    Output,
    check_example,
    check_module,
    check_weights,
    copied,
    plain,
    trace,
)
from prunegym.models.masking.verification import failing_gates
from prunegym.models.precision import new_tensors_in
from prunegym.validation import is_whole_mask, shape


class MaskedCNN(nn.Module):
    """A CNN whose channels can be masked for each image.

    The module is copied and recorded; your module is not changed. A gate zeroes a channel after its norm and
    activation, so masking a channel equals removing its filter. A mask of ones gives the original network. Norms over
    several channels (GroupNorm, LayerNorm) count a masked channel as zeros.

    With :meth:`compensate`, the layers that read a masked channel get a constant in its place, as part of their bias.

    Args:
        module: A CNN that takes one tensor.
        example_input: (batch, channels, height, width) float, normalised; MACs are counted for its size.
        gates: ``"auto"`` for all gates inside of blocks; ``"all"`` also for those of residual sums, where one bit masks
            a channel of all layers that are summed up, and of hidden linear layers; or names of layers.
        frozen: Parameters get no gradients, and batch norm and dropout stay in eval mode even after :meth:`train`.
        output: If the network returns several tensors, the key, position or attribute of the one to use.

    Attributes:
        network: The copy. Its state dict has the original names.
        gates: The gates, in the order in which their producers run.
        mask_size: Number of mask bits: the sum of the gates' widths.
        cost: MACs and weights of masks.
        rejected: For each convolution without a gate, the reason.
        constants: (mask_size,), what replaces masked channels; None for zeros.
        ranges: The smallest and largest number of each step's value, for execution ``int8``; None if not calibrated.
        readers: The layers that get constants, by their step.
        without_constants: For each gate and layer that reads its masked channels as zeros all the same, the reason.

    Raises:
        InvalidInputError: If ``module`` is not a torch module or is masked already, a weight is NaN or infinite, the
            example is not a tensor of four dimensions, or ``gates`` are not names.
        UntraceableModelError: If the network cannot be traced, or no gate is found in it.
        UnknownNameError: If ``gates`` has a name that is not a gate.

    Example:
        >>> from prunegym.models.zoo.network_registry import build
        >>> masked = MaskedCNN(build("simple-cnn"), torch.zeros(1, 3, 32, 32))
        >>> [(gate.name, gate.width) for gate in masked.gates], masked.mask_size
        ([('features.0', 16), ('features.3', 32)], 48)
        >>> masked(torch.zeros(2, 3, 32, 32), torch.ones(2, 48)).shape
        torch.Size([2, 10])
    """

    @torch.inference_mode(False)
    @new_tensors_in()
    def __init__(
        self,
        module: nn.Module,
        example_input: Tensor,
        gates: str | Iterable[str] = "auto",
        frozen: bool = True,
        output: Output = None,
    ) -> None:
        super().__init__()
        check_module(module, "module")
        module = plain(module)
        if any(isinstance(part, MaskedCNN) for part in module.modules()):
            raise InvalidInputError(
                f"module is a {type(module).__name__}, which is masked already. Use it directly, or pass the plain "
                "network: `network` of a MaskedCNN, `masked.network` of a DynamicCNN."
            )
        check_weights(module)
        check_example(example_input)
        wanted = wanted_names(gates)
        self.network = copied(module).eval()
        self.frozen = False
        first = next(module.parameters(), torch.zeros(()))
        device = first.device
        example = example_input[:1].detach().to("cpu", first.dtype).contiguous()
        self.network.cpu()
        with torch.autocast("cpu", enabled=False):  # autocast's rounding would make gates fail
            self.graph: Graph = trace(self.network, example, output)
            check_same(self.graph, self.network, output)
            finder = GateFinder(self.graph, self.network)
            failing = failing_gates(self.graph, self.network, finder.bits(finder.gates)) if finder.gates else {}
        self.rejected = finder.rejected
        for index, reason in failing.items():
            self.rejected.update(dict.fromkeys(finder.gates[index].layers, reason))
        passed = [gate for index, gate in enumerate(finder.gates) if index not in failing]
        self.gates: tuple[Gate, ...] = tuple(choose_gates(passed, wanted, self.rejected, type(module).__name__))
        self.found = finder.bits(list(self.gates))
        self.layouts: dict[str, Layout] = layouts(self.found)
        self.readers, self.without_constants = readers(self.graph, self.found)
        self.cost = CostModel(self.graph, self.network, self.found, self.readers.values())
        self.constants: nn.Parameter | None
        self.register_parameter("constants", None)
        self.ranges: Mapping[str, tuple[float, float]] | None = None
        self.mask_size = sum(gate.width for gate in self.gates)
        self._segments = Segments(self.graph, self.network, self.gates, self.found)
        self.to(device)
        if frozen:
            self.freeze()

    def __repr__(self) -> str:
        return f"MaskedCNN({type(self.network).__name__}: {len(self.gates)} gates, {self.mask_size:,} channels)"

    def _repr_html_(self) -> str:
        prices = zip(self.gates, self.cost.channel_price().tolist(), strict=True)
        rows = [(gate.name, gate.width, price) for gate, price in prices]
        return table(("gate", "channels", "MACs of a channel"), rows, repr(self))

    @property
    def device(self) -> torch.device:
        """The device of the CNN."""
        return self._first.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights; images must have the same."""
        return self._first.dtype

    @property
    def _first(self) -> Tensor:
        return next(self.network.parameters())

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of the images for which MACs are counted."""
        return self.graph[self.graph.input].shape[1:]

    @property
    def places(self) -> dict[str, list[tuple[int, Bits]]]:
        """For each step whose output is masked, the gates and where their bits are in it."""
        return self._segments.places

    def read_shape(self, gate: int) -> tuple[int, ...]:
        """Return the shape (channels, height, width) of the input of a gate's producer, as a pass has it."""
        shape = self.graph[self.graph[self.gates[gate].producers[0]].inputs[0]].shape
        return tuple(as_map(torch.empty(shape, device="meta")).shape[1:])

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the network's output for an image: (classes,) where it classifies."""
        return self.graph[self.graph.output].shape[1:]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles, without functions that refer to this object's modules."""
        return {key: value for key, value in self.__dict__.items() if key != "_segments"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy and bind it to its own modules."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._segments = Segments(self.graph, self.network, self.gates, self.found)

    def freeze(self) -> MaskedCNN:
        """Make the CNN constant: parameters get no gradients, and it stays in eval mode. Returns itself."""
        self.frozen = True
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        return self.eval()

    def unfreeze(self) -> MaskedCNN:
        """Let the CNN be trained again, as joint fine-tuning does. Returns itself, in training mode."""
        self.frozen, self.ranges = False, None
        for parameter in self.parameters():
            parameter.requires_grad_(True)
        return self.train()

    def train(self, mode: bool = True) -> MaskedCNN:
        """Set training mode, which a frozen CNN never enters."""
        super().train(mode and not self.frozen)
        return self

    @property
    def compensation(self) -> str:
        """What readers of a masked channel get: ``zero`` or ``constant``."""
        return COMPENSATIONS[self.constants is not None]

    def compensate(self, constants: Tensor | None) -> MaskedCNN:
        """Set what replaces masked channels.

        A layer that reads a gate then adds to its bias, for each masked channel, the channel's constant times the sum
        of its kernel. All taps count, also at borders. No weight changes.

        Args:
            constants: (mask_size,) finite floats, which are copied; None for zeros.

        Returns:
            Itself.

        Raises:
            InvalidInputError: If they have another shape or are not finite, or no layer can get them.
        """
        self.ranges = None
        if constants is None:
            self.constants = None
        else:
            found = checked_constants(constants, self.mask_size, self.readers, self.without_constants)
            self.constants = nn.Parameter(found.to(self.device, self.dtype, copy=True), requires_grad=not self.frozen)
        return self

    def spent_share(self, mask: Tensor) -> Tensor:
        """Return the MAC share of masks that are chosen for each image, with that of adding their constants.

        Args:
            mask: (batch, mask_size).

        Returns:
            (batch,) float64.
        """
        return self.cost.total_share(mask, 0.0 if self.constants is None else self.cost.compensation_macs(mask))

    def split(self, mask: Tensor) -> tuple[Tensor, ...]:
        """Return views of a mask (..., mask_size), one slice (..., width) per gate, in order."""
        parts: tuple[Tensor, ...] = torch.split(mask, [gate.width for gate in self.gates], dim=-1)
        return parts

    def check_mask(self, mask: Tensor, batch: int) -> None:
        """Raise InvalidInputError unless the mask is a tensor (batch, mask_size)."""
        if is_whole_mask(mask, batch, self.mask_size):
            return
        if not isinstance(mask, Tensor):
            raise InvalidInputError(f"The mask is a {type(mask).__name__}; a tensor is needed: torch.as_tensor(mask).")
        names = ", ".join(gate.name for gate in self.gates[:4])
        hint = f"Give one row per image and one number per channel of the gates ({names}, ...)."
        shape("The mask", mask, (batch, self.mask_size), hint)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the network under a mask.

        Args:
            images: (batch, channels, height, width) float, normalised.
            mask: (batch, mask_size), any finite floats that channels are multiplied with; None keeps all.

        Returns:
            The network's output (batch, ...), differentiable in images and mask.

        Raises:
            InvalidInputError: If the mask has the wrong shape, or the images are not a float tensor.
        """
        if mask is None:
            return self.finish(self.begin(images))
        self.check_mask(mask, len(images))
        state = self.begin(images)
        for part in self.split(mask):
            self.advance(state, part)
        assert state.logits is not None
        return state.logits

    def begin(self, images: Tensor, record: bool = False) -> ForwardPass:
        """Start a pass that stops before the producer of each gate.

        Args:
            images: (batch, channels, height, width) float, normalised.
            record: Keep the values at the gates.

        Returns:
            The pass, at gate 0.
        """
        check_floats(images)
        shape("The image tensor", images, ("batch", self.image_shape[0], "height", "width"))
        values = first_values(self.graph, images)
        state = ForwardPass(-1, None, None, values, [None] * len(self.gates), {} if record else None)
        self._segments.run(state, self._compensated)
        return state

    def advance(self, state: ForwardPass, gate_mask: Tensor | None) -> ForwardPass:
        """Mask the gate at which a pass has stopped, and run to the next gate or to the output.

        Advancing through all gates costs one forward pass.

        Args:
            state: Changed in place.
            gate_mask: (batch, width of the gate) float; None keeps all channels.

        Returns:
            ``state``.

        Raises:
            InvalidInputError: If the mask has the wrong shape, or the pass is over.
        """
        if state.gate == len(self.gates):
            raise InvalidInputError("The pass is over: all gates are done. Call begin to start another pass.")
        assert state.reads is not None
        gate = self.gates[state.gate]
        if gate_mask is not None:
            hint = "Give one row per image and one number per channel."
            shape(f"The mask of gate {gate.name!r}", gate_mask, (len(state.reads), gate.width), hint)
        state.masks[state.gate] = gate_mask
        self._segments.run(state, self._compensated)
        return state

    def finish(self, state: ForwardPass) -> Tensor:
        """Keep all channels of the gates that are left, and return the output (batch, ...)."""
        while state.logits is None:
            self.advance(state, None)
        return state.logits

    def constants_of(self, reader: str) -> Tensor:
        """Return for each bit of a reader's gates what its masked channel adds to the bias: (bits, out)."""
        assert self.constants is not None
        constants, weight = self.split(self.constants), attribute_of(self.network, self.graph[reader].weight)
        return self.readers[reader].table(weight, [constants[gate] for gate in self.readers[reader].gates])

    def _compensated(self, step: Step, value: Tensor, masks: list[Tensor | None]) -> Tensor:
        """Add to a layer's output (batch, ...) what replaces the masked channels that it reads."""
        if self.constants is None or step.name not in self.readers:
            return value
        reader = self.readers[step.name]
        mine = [masks[gate] for gate in reader.gates]
        return value if mine.count(None) == len(mine) else reader.add(value, mine, self.constants_of(step.name))
