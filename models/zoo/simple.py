"""Plain networks, VGG among them: a sequence of convolutions, then a linear layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.validation import whole_number

VGG_PLANS: dict[int, tuple[int, ...]] = {
    11: (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    16: (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0),
}
"""Output channels by depth; 0 is max pooling."""


class SimpleCNN(nn.Module):
    """Convolutions of 3x3, each followed by max pooling by 2 and ReLU, then one linear layer.

    With the default widths it is the network of the article's worked example (3-16-32, input 32x32).

    Args:
        num_classes: Outputs of the linear layer.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels; at least ``2 ** len(widths)``.
        widths: Output channels of each convolution.
        batch_norm: Whether each convolution is followed by batch normalisation.

    Shapes:
        images (batch, in_channels, image_size, image_size) float -> logits (batch, num_classes) float.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        widths: Sequence[int] = (16, 32),
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        hint = f"SimpleCNN pools {len(widths)} times by 2. Use larger images or fewer widths."
        whole_number("image_size", image_size, 2 ** len(widths), hint=hint)
        layers: list[nn.Module] = []
        channels, size = in_channels, image_size
        for width in widths:
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers += [nn.MaxPool2d(2), nn.ReLU()]
            channels, size = width, size // 2
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels * size * size, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (batch, num_classes) of images (batch, channels, height, width)."""
        return self.linear(self.features(images).flatten(1))  # type: ignore[no-any-return]


class PlainCNN(nn.Module):
    """Convolutions of 3x3, each with batch norm and ReLU, then global average pooling and one linear layer.

    Args:
        plan: Output channels, stride and padding of each convolution; None stands for max pooling by 2.
        num_classes: Outputs.
        in_channels: Channels of the images.

    Shapes:
        images (batch, in_channels, height, width) float -> logits (batch, num_classes) float.
    """

    def __init__(self, plan: Sequence[tuple[int, int, int] | None], num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for step in plan:
            if step is None:
                layers.append(nn.MaxPool2d(2))
                continue
            width, stride, padding = step
            layers += [nn.Conv2d(channels, width, 3, stride, padding, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (batch, num_classes) of images (batch, channels, height, width)."""
        x = F.adaptive_avg_pool2d(self.features(images), 1)
        return self.linear(torch.flatten(x, 1))  # type: ignore[no-any-return]


class MCifarNet(PlainCNN):
    """The 8-convolution CIFAR network of the dynamic pruning literature (Gao et al. 2019, FBS, table 1).

    Widths 64, 64, 128, 128, 128, 192, 192, 192; the first convolution is unpadded, the third and sixth have stride 2.
    Images have at least 8 pixels a side.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images.
    """

    PLAN = ((64, 1, 0), (64, 1, 1), (128, 2, 1), (128, 1, 1), (128, 1, 1), (192, 2, 1), (192, 1, 1), (192, 1, 1))

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(self.PLAN, num_classes, in_channels)


class VGG(PlainCNN):
    """VGG with batch norm (Simonyan and Zisserman 2015, CIFAR form). Images have at least 32 pixels a side.

    Args:
        depth: 11 or 16.
        num_classes: Outputs.
        in_channels: Channels of the images.
    """

    def __init__(self, depth: int = 16, num_classes: int = 10, in_channels: int = 3) -> None:
        plan = [(width, 1, 1) if width else None for width in VGG_PLANS[depth]]
        super().__init__(plan, num_classes, in_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
