"""A small layer over ``onnx.helper``: values are arrays, known at export, or names of computed tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from prunegym.errors import MissingDependencyError
from prunegym.models.masking.graph import Step
from prunegym.models.skipping.program.folding import padding_of, pair

Array: TypeAlias = npt.NDArray[Any]
Known: TypeAlias = Array | str
"""An array, or the name of a tensor that is only known when the model runs."""

OPSET, IR_VERSION = 20, 9
"""Old enough for ONNX Runtime 1.17 and later, new enough for Gelu and Mish."""


def require_onnx() -> Any:
    """Return the package onnx.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(
            "ONNX export needs the packages onnx and onnxruntime. Install both: pip install 'prunegym[onnx]'"
        ) from error
    return onnx


class GraphBuilder:
    """Collects the nodes, constants, inputs and outputs of an ONNX graph; names are given in order."""

    def __init__(self) -> None:
        self._onnx = require_onnx()
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._count = 0

    def name_of(self, value: Known) -> str:
        """Return the name of a value; an array becomes a constant of the graph."""
        if isinstance(value, str):
            return value
        name = self._fresh("constant")
        self._constants.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def op(self, kind: str, *inputs: Known, **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        output = self._fresh(kind.lower())
        names = [self.name_of(value) for value in inputs]
        self._nodes.append(self._onnx.helper.make_node(kind, names, [output], name=output, **attributes))
        return output

    def gather(self, data: Known, index: Known | None, axis: int) -> Known:
        """Select entries along an axis, at export if all values are known; an index of None selects all."""
        if index is None:
            return data
        if isinstance(data, str) or isinstance(index, str):
            return self.op("Gather", data, index, axis=axis)
        return np.take(data, index, axis)

    def reshape(self, data: Known, shape: Sequence[int]) -> Known:
        """Give a value another shape; -1 means the remaining size."""
        return self.op("Reshape", data, np.array(shape, np.int64)) if isinstance(data, str) else data.reshape(shape)

    def concat(self, parts: Sequence[Known], axis: int = 0) -> Known:
        """Concatenate values, at export if all are known."""
        if len(parts) == 1:
            return parts[0]
        arrays = [part for part in parts if not isinstance(part, str)]
        if len(arrays) == len(parts):
            return np.concatenate(arrays, axis)
        return self.op("Concat", *parts, axis=axis)

    def adaptive_average(self, x: Known, shape: tuple[int, ...], sizes: list[int]) -> Known:
        """Average over cells as ``adaptive_avg_pool2d`` does.

        Args:
            x: (1, channels, height, width).
            shape: Its shape; the number of channels does not matter.
            sizes: Cells along height and width.
        """
        if sizes == [1, 1]:
            return self.op("GlobalAveragePool", x)
        if shape[2] % sizes[0] == 0 and shape[3] % sizes[1] == 0:
            kernel = [shape[2] // sizes[0], shape[3] // sizes[1]]
            return self.op("AveragePool", x, kernel_shape=kernel, strides=kernel)
        # Cells of unequal size, overlapping by a pixel: each side is a product with a fixed matrix (cells, pixels).
        down, across = (
            F.adaptive_avg_pool1d(torch.eye(pixels), cells).T.contiguous().numpy()
            for pixels, cells in zip(shape[2:], sizes, strict=True)
        )
        return self.op("MatMul", down, self.op("MatMul", x, across.T))

    def input(self, name: str, dtype: Any, shape: Sequence[int], default: Array | None = None) -> str:
        """Add an input of the model; one with a default may be left out when it runs."""
        self._inputs.append(self._value_info(name, dtype, shape))
        if default is not None:
            self._constants.append(self._onnx.numpy_helper.from_array(default, name))
        return name

    def output(self, name: str, value: Known, dtype: Any, shape: Sequence[int]) -> None:
        """Add an output of the model."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [self.name_of(value)], [name], name=name))
        self._outputs.append(self._value_info(name, dtype, shape))

    def build(self, metadata: dict[str, str]) -> Any:
        """Return the checked model, an ``onnx.ModelProto``."""
        helper = self._onnx.helper
        graph = helper.make_graph(self._nodes, "prunegym", self._inputs, self._outputs, self._constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, producer_name="prunegym", ir_version=IR_VERSION)
        helper.set_model_props(model, metadata)
        self._onnx.checker.check_model(model)
        return model

    def _fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"

    def _value_info(self, name: str, dtype: Any, shape: Sequence[int]) -> Any:
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self._onnx.helper.make_tensor_value_info(name, kind, list(shape))


def numpy_of(tensor: Tensor) -> Array:
    """Return a float tensor as a float32 array on the CPU."""
    array: Array = tensor.detach().cpu().float().numpy()
    return array


def geometry(step: Step, size: tuple[int, ...]) -> dict[str, Any]:
    """Return the attributes of an ONNX convolution with a kernel of that height and width."""
    before, after = padding_of(step, size)
    return {
        "kernel_shape": list(size), "strides": list(pair(step.arguments["stride"])), "pads": [*before, *after],
        "dilations": list(pair(step.arguments["dilation"])), "group": step.arguments["groups"],
    }  # fmt: skip
