"""Conversion of a network with gated convolutions to a ``DynamicCNN``; a check that pruned channels have no effect."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.gating.gated_layers import SimpleDynamicCNN, gated_layers
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.storage.cnn_info import CNNInfo
from prunegym.validation import typed


class LayerPruning(NamedTuple):
    """The channels that a gated convolution prunes in a batch of images."""

    pruned: Tensor
    """(batch, channels) bool: the channels that are off."""
    influence: float
    """The largest change of any output of the network when the filters of pruned channels are replaced: 0 if pruned
    channels have no effect."""


@torch.no_grad()
@typed
def check_pruning(network: nn.Module, images: Tensor) -> dict[str, LayerPruning]:
    """Return which channels each gated convolution prunes, and whether these still affect the output.

    The article's check counts kept channels as pruned. Here the filter of each channel in turn is replaced by another
    one, and the output must not change for images whose mask prunes that channel.

    Args:
        network: A network with :class:`~prunegym.models.DynamicPrunedConv2d`, in any mode; the check uses eval mode.
        images: (batch, channels, height, width) float, normalised as the network needs.

    Returns:
        A row for each gated convolution, by name.

    Example:
        >>> found = check_pruning(SimpleDynamicCNN(), torch.rand(4, 3, 32, 32))
        >>> {name: (row.pruned.sum().item(), row.influence) for name, row in found.items()}
        {'features.0': (0, 0.0), 'features.3': (0, 0.0)}
    """
    network = copy.deepcopy(network).eval()
    before = network(images)
    found: dict[str, LayerPruning] = {}
    pruned = {name: layer.mask == 0 for name, layer in gated_layers(network).items()}
    for name, layer in gated_layers(network).items():
        influence = 0.0
        for channel in pruned[name].any(0).nonzero()[:, 0]:
            whole = layer.conv.state_dict()
            whole = {key: value.clone() for key, value in whole.items()}
            for parameter in layer.conv.parameters():
                # Larger and of the other sign, so that no activation after it can hide the difference.
                parameter[channel] = 10 - 10 * parameter[channel]
            rows = pruned[name][:, channel]
            influence = max(influence, float((network(images) - before)[rows].abs().max()))
            layer.conv.load_state_dict(whole)
        found[name] = LayerPruning(pruned[name], influence)
    return found


@typed
def as_dynamic_cnn(network: nn.Module, dataset: Dataset, info: CNNInfo | None = None) -> DynamicCNN:
    """Turn a trained network of gated convolutions into a :class:`DynamicCNN`: the same logits for the same images.

    Each gate becomes a head of a :class:`GatePolicy`, whose features are the averages of the convolution's input.

    Args:
        network: A network with :class:`~prunegym.models.DynamicPrunedConv2d`; it is copied.
        dataset: Training images, for the scale of the features.
        info: Description to store; by default that of the data set and, for a :class:`SimpleDynamicCNN` with the
            article's widths, of the zoo's ``simple-cnn``.

    Returns:
        The model. It clips averages that are more than ten times as large as those of ``dataset``.

    Raises:
        InvalidInputError: If the two networks' outputs differ, because masked channels become nonzero again, for
            example after a norm with a bias.

    Example:
        >>> from prunegym.models import load_dataset
        >>> digits = load_dataset("digits", "train")
        >>> network = SimpleDynamicCNN(in_channels=1, image_size=8).eval()
        >>> model = as_dynamic_cnn(network, digits)
        >>> torch.allclose(model(digits.images[:4]), network(digits.batch(torch.arange(4))), atol=1e-5)
        True
    """
    layers = gated_layers(network)
    plain = copy.deepcopy(network).eval()
    for name, layer in gated_layers(plain).items():
        plain.set_submodule(name, layer.conv)
    masked = MaskedCNN(plain, dataset.batch(torch.arange(1)), gates=list(layers))
    ordered = [layers[gate.name] for gate in masked.gates]
    channels = max(layer.gate.in_channels for layer in ordered)
    features = MaskFeatures(masked, grid=1, feature_size=channels).calibrate(masked, dataset)
    policy = GatePolicy(features, [layer.gate.hidden for layer in ordered]).to(masked.device)
    with torch.no_grad():
        for index, layer in enumerate(ordered):
            size = _common_size(features, index)
            policy.heads[index].load_state_dict(layer.gate.head.state_dict())
            policy.heads[index].get_submodule("0").get_parameter("weight").mul_(size)
    _check_same(network, masked, dataset)
    return DynamicCNN(masked, policy, info or CNNInfo.of(_architecture(network, masked, dataset), dataset))


def _common_size(features: MaskFeatures, decision: int) -> Tensor:
    """Divide a decision's features by powers of two that bring them near 1, and return these: (features,) float32.

    A gate's own input is not scaled. Dividing features and multiplying weights by a power of two leaves their product
    exactly the same.
    """
    mean, std = features.get_buffer(f"mean{decision}"), features.get_buffer(f"std{decision}")
    # The power of two next above |mean| + std: 2 ** ceil(log2(|mean| + std)).
    std.copy_(torch.exp2(torch.ceil(torch.log2(mean.abs() + std))))
    mean.zero_()
    return std


def _architecture(network: nn.Module, masked: MaskedCNN, dataset: Dataset) -> str:
    outputs = masked.graph[masked.graph.output].shape[-1]
    own = isinstance(network, SimpleDynamicCNN) and outputs == len(dataset.classes)
    if own and [gate.width for gate in masked.gates] == [16, 32]:
        return "simple-cnn"
    return type(network).__name__


@torch.no_grad()
def _check_same(network: nn.Module, masked: MaskedCNN, dataset: Dataset) -> None:
    """Compare the outputs of both with every second channel off, whatever the gates have learned."""
    images = dataset.batch(torch.arange(min(16, len(dataset))), device=masked.device)
    forced = copy.deepcopy(network).eval()
    layers = gated_layers(forced)
    for layer in layers.values():
        last = layer.gate.head.get_submodule("2")
        last.get_parameter("weight").zero_()
        last.get_parameter("bias").fill_(1.0)[::2] = -1.0
    expected = forced(images)
    mask = torch.cat([layers[gate.name].mask for gate in masked.gates], dim=1)
    difference = float((masked(images, mask) - expected).abs().max())
    if difference > 1e-3 * max(1.0, float(expected.abs().max())):
        raise InvalidInputError(
            f"With masks applied after norm and activation, the network's outputs differ by {difference:.3g}. A "
            "gated convolution must not be followed by a norm with a bias or an activation that is not 0 at 0; use "
            "prunegym.models.prepare for such a network."
        )
