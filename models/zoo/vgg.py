"""VGG with batch norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VGG_PLANS: dict[int, tuple[int, ...]] = {
    11: (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    16: (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0),
}


class VGG(nn.Module):
    """VGG with batch norm, global average pooling and one linear layer (Simonyan and Zisserman 2015, CIFAR form).

    Args:
        depth: 11 or 16; a 0 in its plan is max pooling by 2.
        num_classes: Outputs.
        in_channels: Channels of the images.

    Shapes:
        images (batch, in_channels, height, width) float, height and width at least 32 -> logits (batch, num_classes).
    """

    def __init__(self, depth: int = 16, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in VGG_PLANS[depth]:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (batch, num_classes) of images (batch, channels, height, width)."""
        x = F.adaptive_avg_pool2d(self.features(images), 1)
        return self.linear(torch.flatten(x, 1))  # type: ignore[no-any-return]
