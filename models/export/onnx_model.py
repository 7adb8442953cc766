"""Export of a dynamic CNN as one ONNX model: preprocessing, decisions and the network without masked channels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.export.onnx_channels import Columns, Kept, cut_gates
from prunegym.models.export.onnx_decisions import decide
from prunegym.models.export.onnx_graph import Array, GraphBuilder, Known, geometry, numpy_of
from prunegym.models.export.onnx_operators import OPERATORS, Call, find_operator, unwritable
from prunegym.models.gating.gate_policy import check_penalty
from prunegym.models.masking.gates import Bits
from prunegym.models.masking.graph import INPUT, Batch, OutputOf, Own, Step, leaves, runner
from prunegym.models.masking.layouts import Block
from prunegym.models.masking.operators import Kind
from prunegym.models.skipping.program.folding import constant, folded, norm_behind, scale_and_shift
from prunegym.models.storage.model_file import Bundle
from prunegym.validation import typed

Decide = Literal["policy", "input", "all"]
Pixels = Literal["uint8", "unit"]
PIXELS = {"uint8": np.uint8, "unit": np.float32}


@typed
def export_onnx(
    model: DynamicCNN | Bundle,
    path: Path | str,
    decide: Decide = "policy",
    pixels: Pixels = "uint8",
    penalty: float | None = None,
) -> Path:
    """Write a model for ONNX Runtime, for one image per call.

    Masked channels are not computed: weights are gathered by the indices of the kept channels. If the mask is known at
    export, weights are cut at export. Batch norm is folded. Channels that reach operations which need all channels
    (depthwise convolutions, channel attention) are computed and multiplied by zero.

    The model's inputs are ``images`` (1, channels, height, width) and, depending on the options, ``penalty`` (1,)
    float32, which may be left out, or ``mask`` (1, mask_size) bool. Its outputs are ``logits`` (1, classes) float32
    and, if the policy decides, ``mask`` (1, mask_size) bool.

    Args:
        model: The CNN and its policy.
        path: The file.
        decide: ``policy``; ``input``: the mask is an input; ``all``: all channels are kept, the dense network.
        pixels: Type of ``images``: ``uint8`` in 0..255, or ``unit``, float32 in [0, 1].
        penalty: Fixed lambda, for a policy with a range of lambdas; None makes it an input.

    Returns:
        The path.

    Raises:
        MissingDependencyError: If the package onnx is not installed.
        UnknownNameError: For another ``decide`` or ``pixels``.
        InvalidInputError: If there is no policy, or the network calls an operation that cannot be written.
    """
    for name, value, allowed in (("decide", decide, ("policy", "input", "all")), ("pixels", pixels, tuple(PIXELS))):
        if value not in allowed:
            raise UnknownNameError(name, value, allowed)
    if decide == "policy" and model.policy is None:
        raise InvalidInputError(
            "The model is a CNN without a gate policy. Export it with decide='input' or 'all' (prunegym export "
            "--dense), or make a policy with prunegym prepare or prunegym train."
        )
    if penalty is not None and (decide != "policy" or model.policy is None or model.policy.penalty_range is None):
        who = "the model's policy" if decide == "policy" else f"an export with decide={decide!r}"
        raise InvalidInputError(f"penalty is {penalty}, but {who} takes no lambda. Leave it out.")
    if penalty is not None and model.policy is not None:
        check_penalty(model.policy.penalty_range, penalty)
    path = Path(path)
    if path.suffix == ".safetensors" or path.is_dir():
        raise InvalidInputError(f"{path} cannot be an ONNX file. Give a name that ends in .onnx.")
    exported = _Export(model, decide, penalty).write(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(exported.SerializeToString())
    return path


class _Export:
    """The steps of a network as ONNX nodes, one after the other."""

    def __init__(self, model: DynamicCNN | Bundle, decide: Decide, penalty: float | None) -> None:
        self.masked, self.policy, self.info = model.masked, model.policy, model.info
        self.graph, self.network = self.masked.graph, self.masked.network
        self.decide, self.penalty = decide, penalty
        self.builder = GraphBuilder()
        self.cut = frozenset() if decide == "all" else cut_gates(self.masked)
        self.values: dict[str, Known] = {}
        self.masks: dict[int, Known] = {}
        self.kept: dict[int, Kept] = {}
        self.lambda_: Known | None = None
        self.mask_input: str | None = None
        self.starts: dict[str, int] = {}
        if decide != "all":
            self.starts = {gate.producers[0]: index for index, gate in enumerate(self.masked.gates)}
        self.points = frozenset(self.masked.places)

    def write(self, pixels: Pixels) -> Any:
        builder, shape = self.builder, self.graph[self.graph.input].shape
        images = builder.input("images", PIXELS[pixels], shape)
        self.values[self.graph.input] = self._normalise(images, pixels)
        if self.decide == "input":
            self.mask_input = builder.input("mask", np.bool_, [1, self.masked.mask_size])
        elif self.decide == "policy":
            self._take_penalty()
        self._compute_constants()
        missing = [step for step in self.graph.steps if not self._is_written(step)]
        if missing:
            raise unwritable(missing)
        for step in self.graph.steps:
            if step.name not in self.values:
                self._step(step)
        builder.output("logits", self.values[self.graph.output], np.float32, self.graph[self.graph.output].shape)
        if self.decide == "policy":
            parts = [self.masks[gate] for gate in range(len(self.masked.gates))]
            mask = builder.reshape(builder.concat(parts), [1, -1])
            builder.output("mask", mask, np.bool_, [1, self.masked.mask_size])
        about = {"transform": str(self.info.shown_transform), "targets": self.info.objective.kind}
        return builder.build(
            {"classes": json.dumps(self.info.classes), "decide": self.decide, "pixels": pixels, **about}
        )

    def _compute_constants(self) -> None:
        """Compute what does not depend on the images, such as weights that are standardised."""
        found: dict[str, Any] = {}
        for step in self.graph.steps:
            parts = list(leaves(step.arguments))
            known = all(part.name in found for part in parts if isinstance(part, OutputOf))
            if step.target == INPUT or not known or any(isinstance(part, Batch | Own) for part in parts):
                continue
            with torch.inference_mode():
                found[step.name] = runner(step, self.network)(found)
            if isinstance(found[step.name], Tensor):
                self.values[step.name] = numpy_of(found[step.name])

    def _is_written(self, step: Step) -> bool:
        if step.target == INPUT or step.name in self.values or step.operation in ("batch_norm", *OPERATORS):
            return True
        return self._weight(step) is not None and (step.operation == "conv2d" or step.kind is Kind.LINEAR)

    def _weight(self, step: Step) -> Array | None:
        """Return the weight of a layer, a parameter or computed from parameters; None if it depends on the images."""
        given = step.arguments.get("weight")
        if isinstance(given, OutputOf):
            known = self.values.get(given.name)
            return known if isinstance(known, np.ndarray) else None
        own = constant(self.network, step, "weight")
        return None if own is None else numpy_of(own)

    def _normalise(self, images: str, pixels: Pixels) -> Known:
        mean, std = (np.array(side, np.float64).reshape(1, -1, 1, 1) for side in self._statistics())
        unit = 255.0 if pixels == "uint8" else 1.0
        floats = self.builder.op("Cast", images, to=1) if pixels == "uint8" else images
        scaled = self.builder.op("Mul", floats, (1 / (unit * std)).astype(np.float32))
        return self.builder.op("Add", scaled, (-mean / std).astype(np.float32))

    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.info.normalisation.mean, self.info.normalisation.std

    def _take_penalty(self) -> None:
        bounds = None if self.policy is None else self.policy.penalty_range
        if bounds is None:
            return
        default = np.array([sum(bounds) / 2 if self.penalty is None else self.penalty], np.float32)
        self.lambda_ = self.builder.input("penalty", np.float32, [1], default) if self.penalty is None else default

    def _step(self, step: Step) -> None:
        if step.name in self.starts:
            self._decide(self.starts[step.name], step)
        value = self._output(step)
        for gate, bits in self.masked.places.get(step.name, ()):
            if gate in self.masks and gate not in self.cut:
                value = self.builder.op("Mul", value, self._factors(self.masks[gate], bits, len(step.shape)))
        self.values[step.name] = value

    def _factors(self, mask: Known, bits: Bits, dimensions: int) -> Known:
        """Return the factors of a value's channels from the bits of a gate (width,) bool."""
        wide = self.builder.concat([self._floats(mask), np.ones(1, np.float32)])
        index = bits.index.numpy()
        places = np.where(index < 0, index.max() + 1, index)
        shape = [-1 if place == bits.axis else 1 for place in range(dimensions)]
        return self.builder.reshape(self.builder.gather(wide, places, 0), shape)

    def _floats(self, mask: Known) -> Known:
        return self.builder.op("Cast", mask, to=1) if isinstance(mask, str) else mask.astype(np.float32)

    def _with_constants(self, step: Step, bias: Array, norm: Step | None = None) -> Known:
        """Add the constants of masked channels to a bias (out,), at export if the mask is known."""
        reader = self.masked.readers.get(step.name)
        if self.masked.constants is None or reader is None or not self.masks:
            return bias
        table = numpy_of(self.masked.constants_of(step.name))
        if norm is not None:
            table = table * numpy_of(scale_and_shift(self.network, norm)[0])
        kept = self.builder.concat([self._floats(self.masks[gate]) for gate in reader.gates])
        if not isinstance(kept, str):
            own: Array = bias + (1 - kept) @ table
            return own
        off = self.builder.reshape(self.builder.op("Sub", np.ones(1, np.float32), kept), [1, -1])
        return self.builder.op("Add", bias, self.builder.reshape(self.builder.op("MatMul", off, table), [-1]))

    def _decide(self, gate: int, producer: Step) -> None:
        """Compute the mask of a gate, and of all gates of the same decision, before its producer runs."""
        if gate in self.masks:
            return
        if self.mask_input is not None:
            parts = self._split(self.builder.reshape(self.mask_input, [-1]), range(len(self.masked.gates)))
        else:
            policy = self.policy
            assert policy is not None
            index = next(i for i, decision in enumerate(policy.decisions) if gate in decision.gates)
            reads = producer.inputs[0]
            columns = self._columns(reads)
            shape = (1, *self.masked.read_shape(gate))
            seen = self._as_map(self.values[reads], self.graph[reads].shape, shape)
            mask = decide(self.builder, policy, index, seen, shape, columns, self.lambda_)
            parts = self._split(mask, policy.decisions[index].gates)
        for other, part in parts.items():
            self.masks[other] = part
            if other in self.cut:
                self.kept[other] = Kept(self.builder, part, self.masked.gates[other].width)

    def _as_map(self, value: Known, before: tuple[int, ...], after: tuple[int, ...]) -> Known:
        """Show a policy vectors and tokens as maps."""
        if len(before) == 4:
            return value
        rows = self.builder.reshape(value, [1, -1, before[-1]])
        return self.builder.reshape(self.builder.op("Transpose", rows, perm=[0, 2, 1]), after)

    def _split(self, mask: Known, gates: Sequence[int]) -> dict[int, Known]:
        if len(gates) == 1:
            return {gates[0]: mask}
        parts: dict[int, Known] = {}
        start = 0
        for gate in gates:
            stop = start + self.masked.gates[gate].width
            if isinstance(mask, str):
                bounds = (np.array([number], np.int64) for number in (start, stop))
                parts[gate] = self.builder.op("Slice", mask, *bounds)
            else:
                parts[gate] = mask[start:stop]
            start = stop
        return parts

    def _columns(self, name: str) -> Columns:
        shape = self.graph[name].shape
        whole = (Block(None, shape[1] if len(shape) > 1 else 1),)
        return Columns(self.builder, self.masked.layouts.get(name, whole), self.kept)

    def _output(self, step: Step) -> Known:
        weight = self._weight(step) if step.operation == "conv2d" or step.kind is Kind.LINEAR else None
        if step.operation == "conv2d" and weight is not None:
            return self._convolution(step, weight)
        if step.kind is Kind.LINEAR and weight is not None:
            return self._linear(step, weight)
        if step.operation == "batch_norm":
            return self._norm(step)
        cut = bool(step.inputs) and self._is_cut(step.inputs[0])
        return find_operator(step).write(Call(self.builder, self.graph, self.network, step, self.values, cut))

    def _is_cut(self, name: str) -> bool:
        return any(block.gate in self.kept for block in self.masked.layouts.get(name, ()))

    def _convolution(self, step: Step, weight: Array) -> Known:
        builder = self.builder
        bias: Known
        if step.weight:
            norm = norm_behind(self.graph, step, self.points)
            weight, own_bias = map(numpy_of, folded(self.network, step, norm))
            bias = self._with_constants(step, own_bias, norm)
        else:  # a norm behind computed weights stays
            given = constant(self.network, step, "bias")
            bias = np.zeros(len(weight), np.float32) if given is None else numpy_of(given)
        columns = self._columns(step.inputs[0])
        gate = self.starts.get(step.name)
        filters = self.kept[gate].produced if gate in self.kept else None
        # Whole filters first: they are contiguous in memory, so the second, scattered gathering has fewer to read.
        kept: Known = builder.gather(columns.extend(weight, 1), filters, 0)
        kept = builder.gather(kept, columns.index, 1)
        inputs = (self.values[step.inputs[0]], kept, builder.gather(bias, filters, 0))
        return builder.op("Conv", *inputs, **geometry(step, weight.shape[2:]))

    def _norm(self, step: Step) -> Known:
        before = self.graph[step.inputs[0]]
        x = self.values[before.name]
        if before.weight and norm_behind(self.graph, before, self.points) is step:
            return x
        columns = self._columns(before.name)
        shape = (-1, *[1] * (len(step.shape) - 2))
        scale, shift = (
            self.builder.gather(columns.extend(numpy_of(side).reshape(shape), 0), columns.index, 0)
            for side in scale_and_shift(self.network, step)
        )
        return self.builder.op("Add", self.builder.op("Mul", x, scale), shift)

    def _linear(self, step: Step, weight: Array) -> Known:
        given = constant(self.network, step, "bias")
        x = self.values[step.inputs[0]]
        bias = self._with_constants(step, np.zeros(len(weight), np.float32) if given is None else numpy_of(given))
        if len(self.graph[step.inputs[0]].shape) != 2:
            return self.builder.op("Add", self.builder.op("MatMul", x, weight.T), bias)
        columns = self._columns(step.inputs[0])
        layout = self.masked.layouts.get(step.inputs[0], ())
        if columns.index is not None:  # a flattened map has several features a channel, and all blocks as many
            by_channel = weight.reshape(len(weight), -1, layout[0].repeat)
            kept = self.builder.gather(columns.extend(by_channel, 1), columns.index, 1)
            return self.builder.op("Gemm", x, self.builder.reshape(kept, [len(weight), -1]), bias, transB=1)
        return self.builder.op("Gemm", x, weight, bias, transB=1)
