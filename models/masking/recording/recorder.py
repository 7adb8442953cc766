"""Recording a network's pass as ATen operations, with writes in place replaced by new values."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode

from prunegym.errors import UntraceableModelError
from prunegym.models.masking.graph import INPUT, ITEM, Attribute, ModeOf, OutputOf, Own, Step, leaves, operation_of
from prunegym.models.masking.recording.writes import MODES, put_back, replaced

_SKIPPED = (str(Path(torch.__file__).parent) + os.sep, __file__)
_CALLER = str(Path(__file__).parent / "tracing.py")
_READS_NUMBERS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"}
_PIECES = {"chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split", "unbind"}


@dataclasses.dataclass
class _Known:
    """A named tensor, with the number of writes to its memory at that time, and for a view its base."""

    tensor: Tensor
    name: str
    writes: int
    base: Tensor | None = None
    source: str = ""
    step: Step | None = None


@dataclasses.dataclass(frozen=True)
class Recording:
    """A pass of a network.

    Attributes:
        steps: Its operations.
        shapes: Shape of each step's output that is a tensor.
        constants: Tensors that forward created.
        values: Copies of the outputs, if requested.
        result: What forward returned.
        spare: Steps that may be left out if no other step reads them.
        reference: Returns the reference to a tensor in the arguments of steps.
    """

    steps: list[Step]
    shapes: dict[str, tuple[int, ...]]
    constants: list[Tensor]
    values: dict[str, Tensor]
    result: Any
    spare: set[str]
    reference: Callable[[Tensor], OutputOf | Attribute]


def record(network: nn.Module, images: Tensor, keep: bool = False) -> Recording:
    """Run a network on images and record each operation.

    A step that works in place is recorded as a step with a new value. Views of the same memory are computed again from
    this value when they are next read. So the recorded steps overwrite nothing.

    Args:
        network: In eval mode.
        images: (batch, channels, height, width); not changed.
        keep: Keep a copy of each step's output.

    Raises:
        UntraceableModelError: If a step depends on the data, or writes where it cannot be followed.
    """
    # Only in inference mode do operators come as forward calls them, not taken apart.
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"), _Recorder(network, images, keep) as recorder:
        result = network(recorder.images)
    return Recording(
        recorder.steps, recorder.shapes, recorder.constants, recorder.values, result, recorder.spare, recorder.reference
    )


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    def __init__(self, network: nn.Module, images: Tensor, keep: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.images = images.clone()
        self.steps = [Step("images", INPUT, {})]
        self.constants: list[Tensor] = []
        self.values: dict[str, Tensor] = {}
        self.shapes = {"images": tuple(images.shape)}
        self.spare: set[str] = set()
        self._live = {"images"}
        self._keep, self._dtype = keep, images.dtype
        self._known = {id(self.images): _Known(self.images, "images", 0)}
        self._writes: Counter[int] = Counter()
        self._lost: dict[int, str] = {}
        self._names = Counter(["images"])
        self._layers = [""]
        self._paths = {id(module): path for path, module in network.named_modules()}
        named = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        self._attributes = {id(value): path for path, value in named.items()}
        self._views = {_view_of(value): path for path, value in named.items() if value.numel()}
        self._owned = {_storage(value) for value in named.values()}
        self._alive: list[Tensor] = []

    def __enter__(self) -> Self:
        self._hooks = [
            hooks.register_module_forward_pre_hook(self._enter_layer),
            hooks.register_module_forward_hook(self._leave_layer, always_call=True),
        ]
        super().__enter__()  # type: ignore[no-untyped-call, unused-ignore]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call, unused-ignore]
        for hook in self._hooks:
            hook.remove()

    def _enter_layer(self, module: nn.Module, _args: Any) -> None:
        self._layers.append(self._paths.get(id(module), self._layers[-1]))

    def _leave_layer(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._layers.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and record it."""
        kwargs = kwargs or {}
        operation = operation_of(func.name())
        if operation in ("detach_", "lift_fresh"):  # of a constant: itself
            return func(*args, **kwargs)
        given = _by_name(func._schema, args, kwargs)
        written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        arguments = {name: self._reference(value) for name, value in given.items()}
        self._check(operation, arguments, [given[name] for name in written])
        output = func(*args, **kwargs)
        if written:
            self._write(func.name(), given[written[0]], arguments)
            return output
        if any(part is output for part in leaves(given)):  # an object for each name, or they could not be told apart
            output = torch.ops.aten.alias.default(output)
        self._make(func.name(), operation, given, arguments, output)
        return output

    def reference(self, tensor: Tensor) -> OutputOf | Attribute:
        """Return the reference to a tensor in the arguments of steps."""
        known = self._known.get(id(tensor))
        if known is None:
            return self._attribute(tensor)
        storage = _storage(tensor)
        if known.writes < self._writes[storage]:
            if storage in self._lost or known.base is None or known.step is None:
                self._refuse(f"reads memory that {self._lost.get(storage)} overwrote through a view; write on a clone")
            source = self.reference(known.base)
            arguments = replaced(known.step.arguments, known.source, source)
            known.name = self._add(known.step.target, arguments, tensor)
            known.source = source.name if isinstance(source, OutputOf) else ""
            known.writes = self._writes[storage]
        return OutputOf(known.name)

    def _attribute(self, tensor: Tensor) -> Attribute:
        """Return a parameter or buffer; any other tensor becomes a buffer."""
        path = self._attributes.get(id(tensor)) or self._views.get(_view_of(tensor))
        if path is None:
            path = f"_tensor_constant{len(self.constants)}"
            self.constants.append(tensor.clone())
            self._attributes[id(tensor)] = path
            self._alive.append(tensor)  # or another tensor could get its id
        return Attribute(path)

    def _reference(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.reference(value)
        if isinstance(value, list | tuple):
            return [self._reference(part) for part in value]
        if isinstance(value, torch.device):
            return Own.DEVICE
        return Own.DTYPE if value is self._dtype else value

    def _check(self, operation: str, arguments: dict[str, Any], written: list[Any]) -> None:
        if operation in _READS_NUMBERS and self._is_live(arguments):
            self._refuse(
                "turns a value that depends on the images into a Python number, which may differ for each image. "
                "Write torch.where(condition, a, b) in place of `if`, and keep tensors in place of float() and .item()"
            )
        if len(written) > 1 or any(not isinstance(part, Tensor) or _storage(part) in self._owned for part in written):
            self._refuse("overwrites one of its own tensors in eval mode; make a new tensor each time")

    def _is_live(self, arguments: dict[str, Any]) -> bool:
        return any(isinstance(part, OutputOf) and part.name in self._live for part in leaves(arguments))

    def _refuse(self, what: str) -> NoReturn:
        raise UntraceableModelError(f"{_place()} {what}.")

    def _add(self, target: str, arguments: dict[str, Any], output: Any) -> str:
        """Record a step and return the name of its output."""
        operation, layer = operation_of(target), self._layers[-1]
        if operation in MODES and arguments[MODES[operation]] is False:
            arguments = {**arguments, MODES[operation]: ModeOf(layer)}
        weight = arguments.get("weight")
        if isinstance(weight, Attribute) and not weight.path.startswith("_tensor_constant"):
            layer = weight.path.removesuffix("weight").removesuffix(".")
        stem = f"{layer}/{operation}" if layer else operation
        self._names[stem] += 1
        name = stem if self._names[stem] == 1 else f"{stem}_{self._names[stem]}"
        self.steps.append(Step(name, target, arguments, layer, _place()))
        if isinstance(output, Tensor):
            self.shapes[name] = tuple(output.shape)
            if self._keep:
                self.values[name] = output.clone()
        if self._is_live(arguments):
            self._live.add(name)
        return name

    def _make(self, target: str, operation: str, given: dict[str, Any], arguments: dict[str, Any], output: Any) -> None:
        """Record a step that makes new tensors, or views."""
        if isinstance(output, Tensor):
            self._know(output, self._add(target, arguments, output), given)
        elif operation in _PIECES:
            self._cut(operation, given, arguments, output)
        elif operation == "adaptive_max_pool2d" and output[0].shape[2:] == (1, 1):  # without the places
            largest = {"self": arguments["self"], "dim": [2, 3], "keepdim": True}
            self._know(output[0], self._add("aten::amax", largest, output[0]), {})
        elif isinstance(output, list | tuple) and any(isinstance(part, Tensor) for part in output):
            name = self._add(target, arguments, None)
            for place, part in enumerate(output):
                if isinstance(part, Tensor):
                    item = self._add(ITEM, {"self": OutputOf(name), "index": place}, part)
                    self.spare.add(item)
                    self._know(part, item, {})

    def _cut(self, operation: str, given: dict[str, Any], arguments: dict[str, Any], pieces: Any) -> None:
        """Record the pieces into which a tensor is split as slices, which need no list of values."""
        dim, start = given["dim"] % given["self"].ndim, 0
        for place, piece in enumerate(pieces):
            if operation == "unbind":
                at: dict[str, Any] = {"self": arguments["self"], "dim": dim, "index": place}
                name = self._add("aten::select.int", at, piece)
            else:
                end = start + piece.shape[dim]
                at = {"self": arguments["self"], "dim": dim, "start": start, "end": end, "step": 1}
                name = self._add("aten::slice.Tensor", at, piece)
                start = end
            self.spare.add(name)
            self._know(piece, name, given)

    def _know(self, tensor: Tensor, name: str, given: dict[str, Any]) -> None:
        """Store the name of a tensor, and the tensor that it is a view of."""
        storage = _storage(tensor)
        known = _Known(tensor, name, self._writes[storage], step=self.steps[-1])
        for part in leaves(given):
            if isinstance(part, Tensor) and id(part) in self._known and _storage(part) == storage:
                known.base, known.source = part, self._known[id(part)].name
        self._known[id(tensor)] = known

    def _write(self, target: str, tensor: Tensor, arguments: dict[str, Any]) -> None:
        """Record a write in place as a new value, for the tensor and for the tensors that it is a view of."""
        packet, _, overload = target.partition(".")
        target = packet.removesuffix("_") + (f".{overload}" if overload else "")
        if not _exists(target) or id(tensor) not in self._known:
            self._refuse(f"writes in place in a way that cannot be followed ({packet}); make a new tensor")
        storage = _storage(tensor)
        self._writes[storage] += 1
        known = self._known[id(tensor)]
        known.name = self._add(target, arguments, tensor)
        known.writes = self._writes[storage]
        while known.base is not None and known.step is not None:
            base = self._known[id(known.base)]
            back = put_back(known.step, OutputOf(base.name), OutputOf(known.name), base.tensor)
            if back is None:
                self._lost[storage] = _place()
                return
            base.name = known.name
            if not isinstance(back, OutputOf):
                base.name = self._add(*back, base.tensor)
                self.spare.add(base.name)
            base.writes = self._writes[storage]
            known.source = base.name
            known = base


def _by_name(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, with the defaults."""
    given = {}
    for place, argument in enumerate(schema.arguments):
        given[argument.name] = args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
    return given


def _exists(target: str) -> bool:
    space, _, rest = target.partition("::")
    name, _, overload = rest.partition(".")
    return hasattr(getattr(getattr(torch.ops, space), name, None), overload or "default")


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _view_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return a key that is equal for two tensors with the same numbers in the same memory."""
    return _storage(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _place() -> str:
    """Return the file and line of the running code outside of torch; empty if there is only torch's code."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_SKIPPED):
        frame = frame.f_back
    if frame.f_code.co_filename == _CALLER:
        return ""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
