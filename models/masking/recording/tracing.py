"""Records a torch module as a graph, which is checked to compute the same."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunegym import validation
from prunegym.errors import InvalidInputError, UntraceableModelError
from prunegym.models.masking.graph import (
    Attribute,
    Batch,
    Graph,
    Step,
    leaves,
)
from prunegym.models.masking.operators import kind_of
from prunegym.models.masking.recording.recorder import Recording, record

BATCHES = (2, 3)
"""Two passes are recorded: whole numbers that differ between them depend on the batch."""

Output = str | int | None


def check_module(thing: object, argument: str) -> None:
    """Raise InvalidInputError, which names the argument, unless ``thing`` is a torch module."""
    if not isinstance(thing, nn.Module):
        raise InvalidInputError(
            f"{argument} is a {type(thing).__name__}; a torch module is needed, e.g. prunegym.build(name) for one of "
            "the zoo, or prunegym.models.read_model(path).masked.network for that of a model file."
        )


def check_weights(module: nn.Module) -> None:
    """Raise InvalidInputError unless weights and buffers are plain tensors of finite numbers, with variances >= 0."""
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            continue  # the message of plain() says what to do
        validation.plain(f"{type(module).__name__}: {key!r}", tensor)
        tensor = tensor.detach()
        if key.endswith("running_var") and (tensor < 0).any():
            raise InvalidInputError(f"{type(module).__name__}: {key!r} has negative variances. Load other weights.")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InvalidInputError(
                f"{type(module).__name__}: {key!r} has NaN or infinite values. Load weights without them."
            )


def check_example(example: object) -> None:
    """Raise InvalidInputError unless an example input is a batch of images."""
    validation.plain("The example input", example)
    if not isinstance(example, Tensor) or example.ndim != 4:
        shaped = f"has shape {tuple(example.shape)}" if isinstance(example, Tensor) else "is not a tensor"
        raise InvalidInputError(
            f"The example input {shaped}; (batch, channels, height, width) is needed, e.g. torch.zeros(1, 3, 32, 32)."
        )


def copied(module: nn.Module) -> nn.Module:
    """Return a copy; weights that hooks compute, as pruning and older weight norm do, are copied as plain tensors."""
    held = (value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor))
    try:
        return copy.deepcopy(module, {id(value): value.detach().clone() for value in held if not value.is_leaf})
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InvalidInputError(
            f"module is a {type(module).__name__}, which cannot be copied ({reason}). Give a module that copy.deepcopy "
            "copies."
        ) from error


def plain(module: nn.Module) -> nn.Module:
    """Return the module inside a wrapper of torch.compile or of data parallelism.

    Raises:
        UntraceableModelError: If it cannot be recorded; the message says what to do.
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(module, (*wrappers, torch._dynamo.OptimizedModule)):
        module = module.module if isinstance(module, wrappers) else module._orig_mod
    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise UntraceableModelError(f"{name} is TorchScript. Give the plain module that it was made from.")
    if any(is_lazy(value) for value in (*module.parameters(), *module.buffers())):
        raise UntraceableModelError(
            f"{name} has lazy layers, whose sizes are not known yet. Run one batch through it first: module(images)."
        )
    return module


def picked(result: Any, output: Output, name: str) -> Tensor:
    """Return the tensor in a network's result that is its output.

    Args:
        result: What forward returned: a tensor, or a dict, tuple or dataclass of tensors.
        output: Key, position or attribute of the tensor if there are several; None if there is only one.
        name: Name of the network, for messages.

    Raises:
        UntraceableModelError: If there are several and ``output`` is None, or if ``output`` does not exist.
    """
    if isinstance(result, Tensor) and output is None:
        return result
    if isinstance(result, Mapping):
        parts: dict[Any, Any] = dict(result)
    elif isinstance(result, list | tuple):
        parts = {**dict(enumerate(result)), **dict(zip(getattr(result, "_fields", ()), result, strict=False))}
    else:
        parts = dict(vars(result)) if hasattr(result, "__dict__") and not isinstance(result, Tensor) else {}
    chosen = parts.get(output) if output is not None else None
    if isinstance(chosen, Tensor):
        return chosen
    keys = [key for key, part in parts.items() if isinstance(part, Tensor)]
    given = f"a tensor {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
    hint = (
        f"Choose it with output={keys[0]!r}; there are {', '.join(map(repr, keys))}." if keys and output is None
        else f"output={output!r} is none of {', '.join(map(repr, keys)) or 'its parts'}." if output is not None
        else "Wrap it in a module that returns the tensor that the accuracy term reads."
    )  # fmt: skip
    raise UntraceableModelError(f"{name} returns {given}; one tensor (batch, ...) is needed. {hint}")


def trace(network: nn.Module, example: Tensor, output: Output = None) -> Graph:
    """Record a network as a graph.

    Args:
        network: In eval mode, on the CPU. Tensors that forward creates become its buffers.
        example: Gives shape and dtype of an image; (1, channels, height, width) float.
        output: See :func:`picked`.

    Returns:
        The graph. It names the network's parameters by path and contains none of them.

    Raises:
        UntraceableModelError: If the network cannot be run or recorded, or runs different steps for other batch sizes.
    """
    name = type(network).__name__
    _check_signature(network, name)
    generator = torch.Generator().manual_seed(0)
    _check_run(network, example, output, name)
    shape = tuple(example.shape[1:])
    images = [torch.randn(batch, *shape, generator=generator).to(example.dtype) for batch in BATCHES]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # its operators do in one step what masks would reach between
        recordings = [record(copy.deepcopy(network), some) for some in images]
    except UntraceableModelError as error:
        raise UntraceableModelError(f"{name} cannot be recorded: {error}") from error
    except Exception as error:
        raise UntraceableModelError(
            f"{name} takes one image but not a batch of two ({type(error).__name__}: {error}). Fixed sizes in forward "
            "are the usual reason: use x.flatten(1) or x.size(0)."
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return _joined(network, recordings, output, name)


def _joined(network: nn.Module, recordings: list[Recording], output: Output, name: str) -> Graph:
    """Return the graph of which two passes are examples."""
    two, three = recordings
    last = two.reference(picked(two.result, output, name))
    three.reference(picked(three.result, output, name))  # makes the steps that are left, as the line above does
    steps: list[Step] = []
    shaped: dict[str, tuple[int, ...]] = {}
    for one, other in zip(two.steps, three.steps, strict=False):
        if (one.name, one.target) != (other.name, other.target):
            _refuse_batch(name, one)
        arguments = {key: _common(one.arguments[key], other.arguments[key], name, one) for key in one.arguments}
        shapes = (recording.shapes.get(one.name, ()) for recording in recordings)
        sizes = [_common(size, more, name, one) for size, more in zip(*shapes, strict=True)]
        shape = tuple(size.times + size.plus if isinstance(size, Batch) else size for size in sizes)
        before = shaped.get(one.inputs[0], ()) if one.inputs else ()
        shaped[one.name] = shape
        kind = kind_of(one.operation, arguments, before)
        steps.append(Step(one.name, one.target, arguments, one.layer, one.place, shape, kind))
    if len(two.steps) != len(three.steps):
        _refuse_batch(name, max(recordings, key=lambda r: len(r.steps)).steps[len(steps)])
    if isinstance(last, Attribute):
        raise UntraceableModelError(f"{name} returns a constant; its output has to depend on the images.")
    for index, (first, second) in enumerate(zip(two.constants, three.constants, strict=True)):
        if first.shape != second.shape or not torch.equal(first, second):
            users = [step for step in steps if Attribute(f"_tensor_constant{index}") in [*leaves(step.arguments)]]
            raise UntraceableModelError(
                f"{name} computes step {users[0]} from numbers that are made outside of torch and differ from batch to "
                "batch (numpy, a counter). Compute them with torch from the images."
            )
        with torch.inference_mode(False):
            network.register_buffer(f"_tensor_constant{index}", first.clone(), persistent=False)
    kept: list[Step] = []
    read = {last.name}
    for step in reversed(steps):
        if step.name not in two.spare or step.name in read:
            kept.append(step)
            read.update(step.inputs)
    return Graph(tuple(reversed(kept)), last.name)


def _common(two: Any, three: Any, name: str, step: Step) -> Any:
    """Return an argument as it is for any batch, from what it is for batches of two and of three."""
    if isinstance(two, torch.ScriptObject):
        raise UntraceableModelError(
            f"{name} computes step {step} from packed weights, as quantised layers have. Give the network that was "
            "quantised."
        )
    if isinstance(two, list) and isinstance(three, list) and len(two) == len(three):
        return [_common(one, other, name, step) for one, other in zip(two, three, strict=True)]
    if type(two) is type(three) is int and two != three:
        times = three - two
        return Batch(times, two - BATCHES[0] * times)
    if two != three:
        _refuse_batch(name, step)
    return two


def _refuse_batch(name: str, step: Step) -> None:
    raise UntraceableModelError(
        f"{name} runs other steps for a batch of {BATCHES[1]} than for one of {BATCHES[0]}, from {step} on. A counter "
        "in forward, or a branch on the size of the batch, are the usual reasons: write forward without them."
    )


def _check_signature(network: nn.Module, name: str) -> None:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(network.forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
    if len(needed) > 1:
        raise UntraceableModelError(
            f"{name} takes several inputs ({', '.join(needed)}); a network that takes one batch of images is needed. "
            "Wrap it in a module that fills in the others."
        )


def _check_run(network: nn.Module, example: Tensor, output: Output, name: str) -> None:
    try:
        with torch.no_grad():
            result = network(example.clone())
    except Exception as error:
        raise UntraceableModelError(
            f"{name} does not take the example input {tuple(example.shape)}: {error}. Give an example of the "
            "shape (batch, channels, height, width) that the network takes, normalised floats."
        ) from error
    value = picked(result, output, name)
    if value.ndim == 0 or len(value) != len(example):
        picked(value, "", name) if output is None else None
        raise UntraceableModelError(f"{name} returns a tensor {tuple(value.shape)}; one tensor (batch, ...) is needed.")
