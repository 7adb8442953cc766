"""The article's method 1 as modules: a gate network for each convolution, and its example CNN.

Use them to write a network with gates from the start; :class:`~prunegym.models.GatePolicy` adds gates to any CNN.
:func:`prunegym.models.conversion.as_dynamic_cnn` turns a network of these modules into a ``DynamicCNN``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models.gating.gate_policy import gate_head
from prunegym.models.gating.static_policy import StraightThrough, greedy
from prunegym.models.zoo.networks import SimpleCNN
from prunegym.validation import choice, typed, whole_number

Estimator = Literal["straight-through", "gumbel"]
ESTIMATORS = ("straight-through", "gumbel")


class GateNetwork(nn.Module):
    """The article's gate: global average pooling, two linear layers with ReLU between, sigmoid.

    The article builds it for a convolution's output channels but feeds it the input channels. Here ``out_channels`` may
    differ from ``in_channels``. The article's ``in_channels // reduction`` is 0 for few channels, here at least 1.

    Args:
        in_channels: Channels of its input.
        reduction: Width of the hidden layer is ``in_channels // reduction``, but at least 1.
        out_channels: Channels that it decides; by default ``in_channels``.
        bias: Initial logit; +2 keeps a channel with probability 0.88, so training starts from a network that works.

    Shapes:
        (batch, in_channels, height, width) float -> probabilities (batch, out_channels, 1, 1).

    Example:
        >>> GateNetwork(3, out_channels=16)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 16, 1, 1])
    """

    def __init__(
        self, in_channels: int, reduction: int = 16, out_channels: int | None = None, bias: float = 2.0
    ) -> None:
        super().__init__()
        self.in_channels = whole_number("in_channels", in_channels)
        self.hidden = max(1, in_channels // whole_number("reduction", reduction))
        self.head = gate_head(in_channels, self.hidden, in_channels if out_channels is None else out_channels, bias)

    def logits(self, x: Tensor) -> Tensor:
        """Return one logit for each channel: (batch, in_channels, height, width) -> (batch, out_channels)."""
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return the probability of keeping each channel, M(x) = sigmoid(G(x)): (batch, out_channels, 1, 1)."""
        return torch.sigmoid(self.logits(x))[:, :, None, None]


class DynamicPrunedConv2d(nn.Module):
    """A convolution with a gate on its input that keeps or zeroes each output channel, image by image.

    The article thresholds at 0.5, which passes no gradient to the gate. In training mode the gradient here goes
    straight through (Bengio et al. 2013); in eval mode there is only the threshold. The mask is applied to the
    convolution's output, so no norm with a bias may follow: it would make a masked channel nonzero again.

    Args:
        in_channels: As in ``nn.Conv2d``.
        out_channels: As in ``nn.Conv2d``.
        kernel_size: As in ``nn.Conv2d``.
        stride: As in ``nn.Conv2d``.
        padding: As in ``nn.Conv2d``.
        reduction: See :class:`GateNetwork`.
        estimator: ``straight-through``, or ``gumbel`` to sample masks in training with logistic noise, the difference
            of two Gumbel variables (Maddison et al. 2017; Jang et al. 2017).
        temperature: Temperature of the sigmoid that the gradient goes through.

    Attributes:
        conv: The convolution.
        gate: The gate.
        probabilities: Keep probabilities of the last forward pass, (batch, out_channels), with gradients; ||M(x)||_1 is
            their sum.
        mask: Mask of the last forward pass, (batch, out_channels) of 0 and 1.

    Shapes:
        (batch, in_channels, height, width) float -> (batch, out_channels, ...), as in the convolution.

    Raises:
        UnknownNameError: For an unknown estimator.

    Example:
        >>> layer = DynamicPrunedConv2d(3, 16, kernel_size=3, padding=1)
        >>> layer(torch.rand(2, 3, 32, 32)).shape, layer.mask.shape
        (torch.Size([2, 16, 32, 32]), torch.Size([2, 16]))
    """

    probabilities: Tensor
    mask: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        *,
        reduction: int = 16,
        estimator: Estimator = "straight-through",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        choice("estimator", estimator, ESTIMATORS)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)
        self.gate = GateNetwork(in_channels, reduction, out_channels)
        self._noise = (estimator == "gumbel", temperature)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution's output, with zeros in the channels that the gate does not keep."""
        logits = self.gate.logits(x)
        # The default generator, so that torch.manual_seed makes training repeatable.
        noisy, temperature = self._noise
        choose = StraightThrough(torch.default_generator if noisy else None, temperature) if self.training else greedy
        bits = choose(logits)
        self.probabilities, self.mask = torch.sigmoid(logits), bits.detach()
        masked: Tensor = self.conv(x) * bits[:, :, None, None]
        return masked

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles, without the tensors of the last forward pass (they have a graph)."""
        return {key: value for key, value in self.__dict__.items() if key not in ("probabilities", "mask")}


class SimpleDynamicCNN(SimpleCNN):
    """The article's example: 3-16-32 gated 3x3 convolutions, each with max pooling by 2 and ReLU, then one linear.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels.
        widths: Output channels of each convolution.
        reduction: See :class:`GateNetwork`.
        estimator: See :class:`DynamicPrunedConv2d`.
        temperature: See :class:`DynamicPrunedConv2d`.

    Shapes:
        images (batch, in_channels, image_size, image_size) float -> logits (batch, num_classes) float.

    Example:
        The article's training step, with its method 2 (||M(x)||_1 in the loss):

        >>> network = SimpleDynamicCNN()
        >>> optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        >>> images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
        >>> loss = nn.functional.cross_entropy(network(images), labels) + 0.001 * l1_norm(network)
        >>> loss.backward(); optimizer.step()
        >>> all(parameter.grad is not None for parameter in network.parameters())
        True
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        widths: Sequence[int] = (16, 32),
        *,
        reduction: int = 16,
        estimator: Estimator = "straight-through",
        temperature: float = 1.0,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size, widths)
        for index, layer in enumerate(self.features):
            if isinstance(layer, nn.Conv2d):
                self.features[index] = DynamicPrunedConv2d(
                    layer.in_channels, layer.out_channels, 3, padding=1, reduction=reduction, estimator=estimator,
                    temperature=temperature,
                )  # fmt: skip

    @classmethod
    def around(
        cls, network: SimpleCNN, *, reduction: int = 16, estimator: Estimator = "straight-through"
    ) -> SimpleDynamicCNN:
        """Add new gates to a trained CNN, whose weights stay frozen.

        Args:
            network: The CNN, without batch norm; it is copied.
            reduction: See :class:`GateNetwork`.
            estimator: See :class:`DynamicPrunedConv2d`.

        Returns:
            The network; only the gates' parameters need gradients.

        Raises:
            InvalidInputError: If the CNN has batch norm.
        """
        if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
            raise InvalidInputError(
                "The network has batch norm, which would add its bias to a masked channel. Use "
                "prunegym.models.prepare: its gates come after the norm."
            )
        convolutions = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
        size = network.linear.in_features // convolutions[-1].out_channels
        made = cls(
            network.linear.out_features, convolutions[0].in_channels,
            round(size**0.5) * 2 ** len(convolutions), [layer.out_channels for layer in convolutions],
            reduction=reduction, estimator=estimator,
        )  # fmt: skip
        for gated, plain in zip(gated_layers(made).values(), convolutions, strict=True):
            gated.conv = copy.deepcopy(plain)
        made.linear = copy.deepcopy(network.linear)
        for name, parameter in made.named_parameters():
            parameter.requires_grad_(".gate." in name)
        return made


def gated_layers(network: nn.Module) -> dict[str, DynamicPrunedConv2d]:
    """Return the gated convolutions of a network by name.

    Raises:
        InvalidInputError: If there is none.
    """
    found = {name: layer for name, layer in network.named_modules() if isinstance(layer, DynamicPrunedConv2d)}
    if not found:
        raise InvalidInputError(
            f"{type(network).__name__} has no DynamicPrunedConv2d, so nothing in it is gated. Use "
            "prunegym.models.prepare for a CNN that was written without gates."
        )
    return found


@typed
def l1_norm(network: nn.Module) -> Tensor:
    """Return ||M(x)||_1: the sum of all gates' probabilities in the last forward pass, averaged over its images.

    Raises:
        InvalidInputError: If the network has no gates, or has not run yet.
    """
    layers = gated_layers(network)
    idle = [name for name, layer in layers.items() if not hasattr(layer, "probabilities")]
    if idle:
        raise InvalidInputError(f"The gate of layer {idle[0]!r} has seen no image yet. Run the network first.")
    return torch.stack([layer.probabilities.sum(1).mean() for layer in layers.values()]).sum()
