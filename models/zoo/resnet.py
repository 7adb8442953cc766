"""ResNets: the CIFAR ones, with parameter-free shortcuts, and ResNet-18."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
