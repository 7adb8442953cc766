"""A traced network as a list of steps, each with its inputs by name, its kind and its output shape."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from prunegym.errors import InvalidInputError, UntraceableModelError
from prunegym.models.masking.operators import (
    Kind,
    is_its_base,
    kind_of_function,
    kind_of_method,
    kind_of_module,
    known_base,
)


@dataclasses.dataclass(frozen=True)
class OutputOf:
    """In a step's arguments: the output of the step with that name."""

    name: str


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation of the network.

    Attributes:
        name: Unique name of its output.
        op: ``input``, ``module``, ``function``, ``method`` or ``attribute``.
        target: Module or attribute path, function, or method name.
        args: Positional arguments, with a :class:`OutputOf` for each output of another step.
        kwargs: Keyword arguments, in the same form.
        inputs: Names of the steps whose outputs it reads, each once.
        kind: What it does to channels.
        shape: Shape of its output for the example input; empty if the output is not a tensor.
    """

    name: str
    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[str, ...]
    kind: Kind
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Graph:
    """The steps in the order in which they run, and the name of the step that gives the network's output."""

    steps: tuple[Step, ...]
    output: str

    def __post_init__(self) -> None:
        """Index the steps by name, and their users."""
        users: dict[str, list[str]] = {step.name: [] for step in self.steps}
        for step in self.steps:
            for name in step.inputs:
                users[name].append(step.name)
        object.__setattr__(self, "index", {step.name: position for position, step in enumerate(self.steps)})
        object.__setattr__(self, "users", {name: tuple(names) for name, names in users.items()})

    index: dict[str, int] = dataclasses.field(init=False, repr=False)
    users: dict[str, tuple[str, ...]] = dataclasses.field(init=False, repr=False)

    @property
    def input(self) -> str:
        """Name of the step that is the network's input."""
        return next(step.name for step in self.steps if step.op == "input")

    def __getitem__(self, name: str) -> Step:
        """Return the step with that name."""
        return self.steps[self.index[name]]


def overwrites(step: Step, network: nn.Module) -> bool:
    """Whether a step works in place: it overwrites its input, which later steps may read."""
    if step.op == "module":
        return bool(getattr(network.get_submodule(step.target), "inplace", False))
    name = step.target if isinstance(step.target, str) else step.target.__name__
    return name.endswith("_") or step.target is operator.iadd or bool(step.kwargs.get("inplace", False))


def trace(network: nn.Module, example_input: Tensor) -> Graph:
    """Trace a network into steps.

    Args:
        network: In eval mode; takes one tensor (batch, channels, height, width), returns one tensor (batch, ...).
        example_input: Gives the shapes; float, (batch, channels, height, width).

    Returns:
        The graph. It names the network's modules by path and contains none of them.

    Raises:
        UntraceableModelError: If torch.fx cannot trace the network, it needs several inputs, or does not return a
            tensor.
    """
    name = type(network).__name__
    _check_signature(network, name)
    _check_run(network, example_input, name)
    root = _OneInput(network)
    tracer = _Tracer(_proven(network, example_input))
    try:
        traced = fx.GraphModule(root, tracer.trace(root))
    except Exception as error:
        raise UntraceableModelError(
            f"torch.fx cannot trace {name} ({type(error).__name__}: {error}). Control flow that depends on the data is "
            "the usual reason: move it out of forward, or into a function marked with torch.fx.wrap."
        ) from error
    # A copy, since the network may write on its input; its version counts how often.
    with torch.inference_mode(False), torch.no_grad():
        images = example_input.clone()
        version = images._version
        _Shapes(traced).propagate(images)
        if images._version != version:
            _copy_input(traced)
    # torch.fx stores constant tensors that forward creates on the traced root; they become buffers of the network.
    for node in traced.graph.nodes:
        if node.op == "get_attr" and str(node.target) in root.__dict__:
            network.register_buffer(str(node.target), getattr(root, str(node.target)), persistent=False)
    return _to_steps(traced, name, tracer.proven)


class _Tracer(fx.Tracer):
    """Traces with modules whose kind is known as one step each, and ``x += y`` so that all names of x see it."""

    def __init__(self, proven: frozenset[str]) -> None:
        super().__init__()
        self.proven = proven

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        path = module_qualified_name.removeprefix("network.")
        return super().is_leaf_module(m, module_qualified_name) or is_its_base(m) or path in self.proven

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        value = super().call_module(m, forward, args, kwargs)
        if self.proven and self.path_of_module(m).removeprefix("network.") in self.proven:
            for child in m.children():
                value = child(value)
        return value

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Proxy(fx.Proxy):
    """Stands for a value; after an augmented assignment for the new one, under every name that it has."""


def _augmented(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def assign(self: _Proxy, other: Any) -> Any:
        value = function(self, other)
        if _is_number(self.node):
            return value
        self.node = value.node
        return self

    return assign


def _is_number(node: fx.Node) -> bool:
    """Whether a value is part of a shape, or computed from such parts: a number has no other names."""
    if node.op == "call_method":
        return kind_of_method(str(node.target)) is Kind.SIZE
    if node.op != "call_function" or not callable(node.target):
        return False
    if kind_of_function(node.target, node.args) is Kind.SIZE:
        return True
    inputs = node.all_input_nodes
    return node.target.__module__ == "_operator" and bool(inputs) and all(map(_is_number, inputs))


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"):
    _function = getattr(operator, f"{_name}_" if _name in ("and", "or") else _name)
    setattr(_Proxy, f"__i{_name}__", _augmented(_function))


class _Shapes(ShapeProp):  # type: ignore[misc, unused-ignore]
    """Runs the steps as a forward pass does, and records their shapes."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _module_function(self.fetch_attr(target))(*args, **kwargs)


def _module_function(module: nn.Module) -> Callable[..., Any]:
    """Return what a module's step computes: of a subclass that goes on with its children only what its base does."""
    if not module._modules or is_its_base(module) or (base := known_base(module)) is None:
        return module
    return functools.partial(base.forward, module)


def _copy_input(traced: fx.GraphModule) -> None:
    """Let a network that writes on its input write on a copy, not on the caller's images."""
    (images,) = (node for node in traced.graph.nodes if node.op == "placeholder")
    with traced.graph.inserting_after(images):
        copied = traced.graph.call_function(torch.clone, (images,))
    images.replace_all_uses_with(copied, delete_user_cb=lambda user: user is not copied)
    copied.meta = dict(images.meta)


def _proven(network: nn.Module, example_input: Tensor) -> frozenset[str]:
    """Return the subclasses that do what their base does, then what their children do in turn, on a batch of noise.

    A norm with its activation is such a subclass. Its children become steps of their own.
    """
    candidates = {
        name: module for name, module in network.named_modules()
        if known_base(module) is not None and not is_its_base(module) and _only_what_its_base_has(module)
    }  # fmt: skip
    if not candidates:
        return frozenset()
    equal: dict[str, bool] = {}

    def comparing(name: str, base: type[nn.Module]) -> Callable[..., None]:
        def compare(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            same = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
            for other in (args[0], torch.randn_like(args[0])) if same else ():
                expected = base.forward(module, other.clone())
                for child in module.children():
                    expected = child(expected)
                got = output if other is args[0] else module.forward(other.clone())
                same = same and got.shape == expected.shape and torch.allclose(got, expected, 1e-5, 1e-6)
            equal[name] = equal.get(name, True) and same

        return compare

    noise = torch.randn(example_input.shape, generator=torch.Generator().manual_seed(1)).to(example_input.dtype)
    handles = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for name, module in candidates.items():
            base = known_base(module)
            assert base is not None
            handles.append(module.register_forward_hook(comparing(name, base), with_kwargs=True))
        try:
            network(noise)
        except Exception:  # what it cannot do shows in the trace
            return frozenset()
        finally:
            for handle in handles:
                handle.remove()
    return frozenset(name for name, same in equal.items() if same)


def _only_what_its_base_has(module: nn.Module) -> bool:
    """Whether a subclass has its base's parameters and no others, and no hooks."""
    base = known_base(module)
    known = {nn.Conv2d: {"weight", "bias"}, nn.Linear: {"weight", "bias"}, nn.BatchNorm2d: {"weight", "bias"}}
    hooked = module._forward_hooks or module._forward_pre_hooks
    computed = any(isinstance(getattr(type(module), name, None), property) for name in ("weight", "bias"))
    return base in known and set(module._parameters) <= known[base] and not hooked and not computed


class _OneInput(nn.Module):
    """Calls a network with one tensor, so that its other parameters keep their defaults in tracing."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images)


def check_module(thing: object, argument: str) -> None:
    """Raise InvalidInputError, which names the argument, unless ``thing`` is a torch module."""
    if not isinstance(thing, nn.Module):
        raise InvalidInputError(
            f"{argument} is a {type(thing).__name__}; a torch module is needed, e.g. prunegym.build(name) for one of "
            "the zoo, or prunegym.models.read_model(path).masked.network for that of a model file."
        )


def _check_signature(network: nn.Module, name: str) -> None:
    if isinstance(network, torch.jit.ScriptModule | nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise UntraceableModelError(
            f"{name} is a wrapped network that torch.fx cannot trace. Give the plain module that it was made from "
            "(`module` of a DataParallel)."
        )
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(network.forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
    if len(needed) > 1:
        raise UntraceableModelError(
            f"{name} takes several inputs ({', '.join(needed)}); a network of one image batch is needed. Wrap it in a "
            "module that fills in the others."
        )


def _check_run(network: nn.Module, example_input: Tensor, name: str) -> None:
    try:
        with torch.no_grad():
            output = network(example_input.clone())
    except Exception as error:
        raise UntraceableModelError(
            f"{name} does not take the example input {tuple(example_input.shape)}: {error}. Give an example of the "
            "shape (batch, channels, height, width) that the network takes, normalised floats."
        ) from error
    if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != len(example_input):
        given = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise UntraceableModelError(
            f"{name} returns {given}; one tensor (batch, ...) is needed. Wrap it in a module that returns the tensor "
            "that the accuracy term reads."
        )


def _to_steps(traced: fx.GraphModule, name: str, proven: frozenset[str]) -> Graph:
    steps: list[Step] = []
    output = ""
    for node in traced.graph.nodes:
        if node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise UntraceableModelError(f"{name} returns a constant; its output has to depend on the images.")
            output = node.args[0].name
            continue
        op, kind = _classify(traced, node, proven)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), _value)
        inputs = tuple(other.name for other in node.all_input_nodes)
        target = f"{node.target}.".removeprefix("network.")[:-1] if op in ("module", "attribute") else node.target
        steps.append(Step(node.name, op, target, tuple(args), dict(kwargs), inputs, kind, _shape(node)))
    return Graph(tuple(steps), output)


def _value(node: fx.Node) -> Any:
    return OutputOf(node.name)


def _classify(traced: fx.GraphModule, node: fx.Node, proven: frozenset[str]) -> tuple[str, Kind]:
    if node.op == "call_module":
        path = str(node.target).removeprefix("network.")
        return "module", kind_of_module(traced.get_submodule(str(node.target)), path in proven)
    if node.op == "call_function":
        assert callable(node.target)
        return "function", kind_of_function(node.target, node.args)
    if node.op == "call_method":
        return "method", kind_of_method(str(node.target))
    return ("input" if node.op == "placeholder" else "attribute"), Kind.OTHER


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if isinstance(meta, fx.passes.shape_prop.TensorMetadata) else ()


Runner = Callable[[dict[str, Any]], Any]


def runner(step: Step, network: nn.Module) -> Runner:
    """Return a function that computes a step's output from the values so far (at first the network's input alone)."""
    if step.op == "input":
        return lambda values: values[step.name]
    if step.op == "attribute":
        return lambda _values: attribute_of(network, step.target)
    if step.op == "module":
        module = network.get_submodule(step.target)
        function: Callable[..., Any] = module if step.kind is Kind.OTHER else _module_function(module)
    else:
        function = step.target if step.op == "function" else getattr(Tensor, step.target)
        if function is Tensor.view:
            function = _view
    if not step.kwargs and all(isinstance(argument, OutputOf) for argument in step.args):
        names = [argument.name for argument in step.args]
        if len(names) == 1:
            (name,) = names
            return lambda values: function(values[name])
        return lambda values: function(*[values[name] for name in names])
    return lambda values: function(*_resolve(step.args, values), **_resolve(step.kwargs, values))


def _view(value: Tensor, *shape: Any, **kwargs: Any) -> Tensor:
    """View, or copy where the memory layout does not allow a view, since channels_last is this package's choice."""
    if shape and isinstance(shape[0], torch.dtype):
        return value.view(*shape)
    return value.reshape(*shape) if shape else value.reshape(kwargs["size"])


def attribute_of(network: nn.Module, path: str) -> Any:
    """Return a parameter or buffer of a network by its path."""
    parent, _, leaf = path.rpartition(".")
    return getattr(network.get_submodule(parent), leaf)


def _resolve(argument: Any, values: dict[str, Any]) -> Any:
    if isinstance(argument, OutputOf):
        return values[argument.name]
    if isinstance(argument, (list, tuple)):
        return type(argument)(_resolve(item, values) for item in argument)
    if isinstance(argument, dict):
        return {key: _resolve(item, values) for key, item in argument.items()}
    if isinstance(argument, slice):
        return slice(*(_resolve(item, values) for item in (argument.start, argument.stop, argument.step)))
    return argument
