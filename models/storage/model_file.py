"""Model files: a CNN, its description and its gate policy in one safetensors file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError, MissingDataError, PruneGymError
from prunegym.models.checks import try_one
from prunegym.models.data.dataset import Dataset
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.gating.static_policy import Policy, StaticPolicy
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.precision import new_tensors_in
from prunegym.models.storage import weights as files
from prunegym.models.storage.cnn_info import CNNInfo, as_json, from_json
from prunegym.models.storage.run_state import BROKEN
from prunegym.validation import typed, whole_number, yes_or_no

LARGEST_WEIGHT = 1e12
"""Largest weight of a policy. With larger ones its logits could become NaN, and masks meaningless."""
FORMAT, QUANTIZED_FORMAT, CONSTANTS_FORMAT = 1, 2, 3
"""A file has the lowest format that its content needs, so that older versions still read it. With constants for masked
channels its weights may be int8 or floats."""
CONSTANTS = "compensation.constants"
RANGES = "int8.ranges"
"""Of values, for execution ``int8``; older versions leave them out."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A CNN with its description, gates, data, seed and device: the common input of functions on a model.

    Attributes:
        masked: The CNN.
        info: Its description.
        policy: Its gates; None if it has none.
        data: Data sets by role: ``train``, ``validation``, and ``evaluated`` for the split that is measured.
        seed: Seed of random draws.
        device: Name of the torch device.
    """

    masked: MaskedCNN
    info: CNNInfo
    policy: Policy | None = None
    data: Mapping[str, Dataset] = dataclasses.field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"


@typed
def write_model(
    path: Path | str,
    network: nn.Module,
    info: CNNInfo,
    policy: Policy | None = None,
    masked: MaskedCNN | None = None,
    int8: bool = False,
) -> None:
    """Write a CNN, with or without a gate policy, to one safetensors file with JSON metadata.

    Args:
        path: The file.
        network: The CNN.
        info: Its description.
        policy: Its gate policy.
        masked: The masked CNN, whose choice of gates is stored with the policy.
        int8: Store the weights of convolutions and linears as int8, with one scale for each output channel. The file
            is about four times smaller, but not faster: the weights are floats again when the file is read.

    Raises:
        InvalidInputError: If the path does not end in ``.safetensors``, the network cannot run an image of the
            described shape, or ``policy`` is given without ``masked``.
    """
    path = Path(path)
    _check_name(path)
    if masked is None or masked.image_shape != info.image_shape:
        _check_runs(network, info)
    state = files.quantized_state if yes_or_no("int8", int8) else nn.Module.state_dict
    tensors = {f"network.{name}": tensor for name, tensor in state(network).items()}
    description: dict[str, Any] = {"format": QUANTIZED_FORMAT if int8 else FORMAT, "info": as_json(info)}
    if masked is not None and masked.ranges is not None:
        tensors[RANGES] = torch.tensor([*masked.ranges.values()], dtype=torch.float32)
        description["ranges"] = [*masked.ranges]
    if policy is not None and masked is None:
        raise InvalidInputError("A gate policy is stored with its masked CNN. Give masked= too.")
    if policy is not None and masked is not None:
        tensors |= {f"policy.{name}": tensor for name, tensor in state(policy).items()}
        description["gates"] = [gate.name for gate in masked.gates]
        description["features"] = policy.features.config
        if masked.constants is not None:
            tensors[CONSTANTS] = masked.constants
            description |= {"format": CONSTANTS_FORMAT, "compensation": masked.compensation}
        description["policy"] = {"kind": type(policy).__name__, **getattr(policy, "config", {})}
    files.write_tensors(path, tensors, {"prunegym": json.dumps(description)})


@new_tensors_in()
@typed
def read_model(path: Path | str, network: nn.Module | None = None, gates: str | None = None) -> Bundle:
    """Read a model file of :func:`write_model`.

    Args:
        path: The file.
        network: The network, with any weights, if it is not in the zoo.
        gates: ``auto``, ``all`` or names with commas between them, for a CNN without a policy.

    Raises:
        MissingDataError: If there is no such file.
        InvalidInputError: If it is damaged or was not written by PruneGym, or gates are chosen for its policy.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingDataError(f"There is no model file {path}. Check the path.")
    _check_name(path)
    tensors = files.read_weights(path)
    description = _description(path)
    if description["format"] != FORMAT:
        tensors = files.dequantized(tensors, str(path))
    with _reading(path, "network"):
        info = from_json(description["info"])
        network = info.build() if network is None else network
    files.load_tensors(network, _part(tensors, "network."), str(path))
    stored = description.get("gates")
    if stored is not None and gates is not None:
        raise InvalidInputError(f"{path} has a policy for its own {len(stored)} gates. Leave out the choice of gates.")
    chosen = stored or ("auto" if gates is None else gates if gates in ("auto", "all") else gates.split(","))
    masked = MaskedCNN(network, info.example(), gates=chosen)
    ranges = _ranges(path, tensors, description["ranges"]) if "ranges" in description else None
    masked.ranges = ranges
    if "policy" not in description:
        return Bundle(masked=masked, info=info)
    with _reading(path, "policy"):
        features = _feature_options(path, dict(description["features"]))
        weights = _part(tensors, "policy.")
        largest = max((size for tensor in weights.values() for size in tensor.shape), default=0)
        policy = _policy(masked, features, dict(description["policy"]), largest)
    files.load_tensors(policy, weights, str(path))
    if any((tensor.abs() > LARGEST_WEIGHT).any() for tensor in weights.values()):
        raise InvalidInputError(f"{path} is damaged: its policy has weights beyond {LARGEST_WEIGHT:g}. Write it again.")
    deviations = [value for name, value in policy.features.named_buffers() if name.startswith("std")]
    if any((value <= 0).any() for value in deviations):
        raise InvalidInputError(f"{path} is damaged: its policy divides by standard deviations of 0. Write it again.")
    if description["format"] == CONSTANTS_FORMAT:
        masked.compensate(_constants(path, tensors, masked))
        masked.ranges = ranges
    return Bundle(masked=masked, info=info, policy=policy)


def _check_runs(network: nn.Module, info: CNNInfo) -> None:
    described = f"an image of shape {info.image_shape}, as its description says"
    hint = "Describe it with CNNInfo.of and the data set that it was trained on."
    try_one(network, info.example(), f"The network is a {type(network).__name__}", described, hint)


@contextlib.contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except InvalidInputError as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error
    except PruneGymError:
        raise
    except BROKEN as error:
        raise InvalidInputError(
            f"{path} is damaged: its description of the {what} is invalid ({type(error).__name__}: {error}). "
            "Write it again."
        ) from error


def _feature_options(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of features. Older files also have ``early_logits``, which were removed."""
    if options.pop("early_logits", False):
        raise InvalidInputError(
            f"The policy of {path} uses early logits (early_logits in the file's features), which this version of "
            "PruneGym does not have. Use the version that wrote the file, or train the gates again (prunegym prepare, "
            "or prunegym train)."
        )
    return options


def _policy(masked: MaskedCNN, features: dict[str, Any], options: dict[str, Any], largest: int) -> Policy:
    """Make a policy with new weights, whose layers are not larger than the largest tensor in the file."""
    kinds = (StaticPolicy.__name__, GatePolicy.__name__)
    kind = options.pop("kind")
    if kind not in kinds:
        raise ValueError(f"{kind!r} is not a kind of policy: {kinds}")
    made = MaskFeatures(masked, **features)
    if kind == StaticPolicy.__name__:
        return StaticPolicy(made)
    bounds = options.pop("penalty_range", None)
    for width in options["hidden"] if isinstance(options["hidden"], list) else [options["hidden"]]:
        whole_number("hidden", width, 1, largest)
    return GatePolicy(made, penalty_range=None if bounds is None else (bounds[0], bounds[1]), **options)


def _constants(path: Path, tensors: Mapping[str, Tensor], masked: MaskedCNN) -> Tensor:
    found = tensors.get(CONSTANTS, torch.zeros(0))
    if found.shape != (masked.mask_size,) or not (found.abs() <= LARGEST_WEIGHT).all() or not masked.readers:
        raise InvalidInputError(
            f"{path} is damaged: the constants for masked channels are missing, of another number, or beyond "
            f"{LARGEST_WEIGHT:g}. Write it again."
        )
    return found


def _ranges(path: Path, tensors: Mapping[str, Tensor], names: Any) -> dict[str, tuple[float, float]]:
    found = tensors.get(RANGES, torch.zeros(0))
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not named or found.shape != (len(names), 2) or not (found.abs() <= LARGEST_WEIGHT).all():
        raise InvalidInputError(f"{path} is damaged: its ranges of values for int8 do not fit. Write it again.")
    return {name: (min(low, 0.0), max(high, 0.0)) for name, (low, high) in zip(names, found.tolist(), strict=True)}


def _check_name(path: Path) -> None:
    if path.suffix != ".safetensors" or path.is_dir():
        raise InvalidInputError(
            f"{path} cannot be a model file: its name must end in .safetensors. Load weights in other formats with "
            "prunegym.models.load_weights(network, path)."
        )


def _description(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("prunegym")
    if text is None:
        raise InvalidInputError(
            f"{path} has weights but no description of the network. Load it with "
            "prunegym.models.load_weights(network, path)."
        )
    with _reading(path, "file"):
        description = dict(json.loads(text))
    if description.get("format") not in (FORMAT, QUANTIZED_FORMAT, CONSTANTS_FORMAT):
        raise InvalidInputError(
            f"{path} has format {description.get('format')}; this version of PruneGym reads formats {FORMAT} to "
            f"{CONSTANTS_FORMAT}. Update it."
        )
    return description


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
