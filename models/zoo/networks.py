"""Plain networks, also VGG, and residual networks."""

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
        plan: Output channels, stride and padding of each convolution; None means max pooling by 2.
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


class _OptionAShortcut(nn.Module):
    """ResNet's parameter-free shortcut (He et al. 2016, section 4.2, option A): subsample, pad channels with zeros."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pad = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut: nn.Module = _OptionAShortcut(in_channels, out_channels) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height / stride, width / stride)."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self._skip(x))

    def _skip(self, x: Tensor) -> Tensor:
        return self.shortcut(x)  # type: ignore[no-any-return]


class CifarResNet(nn.Module):
    """CIFAR ResNet of 6n + 2 layers with option A shortcuts (He et al. 2016, section 4.2).

    Parameter names are those of the public CIFAR checkpoints (``layer1.0.conv1.weight``, ``linear.weight``).

    Args:
        depth: 6n + 2, e.g. 20, 32, 44, 56.
        num_classes: Outputs.
        in_channels: Channels of the images.

    Shapes:
        images (batch, in_channels, height, width) float -> logits (batch, num_classes) float.
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, out_channels, stride)
        return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (batch, num_classes) of images (batch, channels, height, width)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]


class ProjectionBlock(BasicBlock):
    """A basic block with a projection where the shape changes (He et al. 2016, option B); names as in torchvision."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, stride)
        del self.shortcut
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def _skip(self, x: Tensor) -> Tensor:
        return self.downsample(x)  # type: ignore[no-any-return]


class ResNet18(nn.Module):
    """ResNet-18 for ImageNet (He et al. 2016, table 1), of 1.81 billion MACs at 224x224.

    Parameter names are those of torchvision's checkpoints (``layer2.0.downsample.0.weight``, ``fc.weight``).

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images.

    Shapes:
        images (batch, in_channels, height, width) float -> logits (batch, num_classes) float.
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(ProjectionBlock(64, 64, 1), ProjectionBlock(64, 64, 1))
        self.layer2 = nn.Sequential(ProjectionBlock(64, 128, 2), ProjectionBlock(128, 128, 1))
        self.layer3 = nn.Sequential(ProjectionBlock(128, 256, 2), ProjectionBlock(256, 256, 1))
        self.layer4 = nn.Sequential(ProjectionBlock(256, 512, 2), ProjectionBlock(512, 512, 1))
        self.fc = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (batch, num_classes) of images (batch, channels, height, width)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]
