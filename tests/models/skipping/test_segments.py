"""Networks of which the kernel runs parts, with steps of torch between them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.errors import SkippingWarning
from prunegym.models import DynamicCNN, MaskedCNN, MaskFeatures, SkippingCNN, shipped_model
from prunegym.models.gating.static_policy import StaticPolicy, greedy, rollout
from prunegym.models.skipping.kernel_path import KernelPath
from prunegym.models.skipping.program.lowering import lower
from prunegym.models.skipping.translation import segments
from tests.models.skipping.skipping_networks import close, needs_kernel, policy_for, random_masks
from tests.models.slicing import randomise

pytestmark = pytest.mark.usefixtures("one_thread")


class Between(nn.Module):
    """A step that only torch runs stands between gates of the kernel, and what is before it is needed behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.c, self.d = nn.Conv2d(16, 20, 3, padding=1), nn.Conv2d(20, 16, 1)
        self.e, self.last = nn.Conv2d(16, 12, 3, stride=2, padding=1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.b(F.relu(self.a(x))))
        x = F.silu(self.d(F.relu(self.c(x)))) + x
        return F.log_softmax(self.last(F.relu(self.e(x)).mean((2, 3))), 1)


class Common(nn.Module):
    """What common networks are made of, all of it in the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.up, self.deep, self.down = (
            nn.Conv2d(12, 18, 1),
            nn.Conv2d(18, 18, 5, 1, 2, groups=18),
            nn.Conv2d(18, 12, 1),
        )
        self.into, self.out = nn.Conv2d(18, 6, 1), nn.Conv2d(6, 18, 1)
        self.grouped, self.wide = nn.Conv2d(12, 12, 3, 1, 1, groups=3), nn.Conv2d(12, 10, (1, 3), padding=(0, 1))
        self.before, self.grow = nn.BatchNorm2d(22), nn.Conv2d(22, 8, 3, padding=2, dilation=2)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.stem(x)))
        y = F.silu(self.deep(F.relu6(self.up(x))))
        y = y * torch.sigmoid(self.out(F.silu(self.into(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.down(y)
        x = torch.cat([F.gelu(self.grouped(x)), F.relu(self.wide(x))], 1)
        x = F.avg_pool2d(F.max_pool2d(F.relu(self.before(x)), 3, 2, ceil_mode=True), 2)
        return self.last(F.relu(self.grow(x)).mean((2, 3)))


def network(kind: type[nn.Module], gates: str = "auto") -> MaskedCNN:
    torch.manual_seed(0)
    return MaskedCNN(randomise(kind()), torch.zeros(1, 3, 22, 22), gates)


@needs_kernel
@pytest.mark.parametrize("gates", ["auto", "all"])
@pytest.mark.parametrize("kind", [Between, Common])
def test_masks_that_are_given(kind: type[nn.Module], gates: str) -> None:
    masked = network(kind, gates)
    images, masks = torch.randn(6, 3, 22, 22), random_masks(masked)
    fast = SkippingCNN(masked, None, "kernel")
    close(fast(images, masks).output, masked(images, masks.float()))
    parts = segments(lower(masked))
    assert sum(part.in_kernel for part in parts) == (2 if kind is Between else 1)
    assert len(parts) == (4 if kind is Between else 1)


@needs_kernel
@pytest.mark.parametrize("gates", ["auto", "all"])
@pytest.mark.parametrize("kind", [Between, Common])
def test_a_policy_decides_gate_by_gate(kind: type[nn.Module], gates: str) -> None:
    masked = network(kind, gates)
    policy, images = policy_for(masked), torch.randn(5, 3, 22, 22)
    found = SkippingCNN(masked, policy, "kernel")(images)
    expected = rollout(masked, policy, images, greedy)
    assert torch.equal(found.mask, expected.mask.bool())
    assert 0 < found.mask.float().mean() < 1
    close(found.output, expected.output)


@needs_kernel
def test_times_are_of_every_layer() -> None:
    masked = network(Between)
    path = KernelPath(lower(masked))
    seconds = path.timed(torch.randn(1, 3, 22, 22), random_masks(masked)[:1])
    assert {layer.name for layer in path.program.layers} <= set(seconds)
    assert min(seconds.values()) >= 0


class Unknown(Between):
    """Nearly all is computed by a convolution with an even border, which the kernel does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = nn.Conv2d(16, 64, 3, padding=1, padding_mode="reflect"), nn.Conv2d(64, 16, 9, padding=4)


@needs_kernel
def test_a_warning_names_the_step_that_is_computed_in_full() -> None:
    masked = network(Unknown)
    model = DynamicCNN(masked, StaticPolicy(MaskFeatures(masked)), shipped_model("digits").info)
    with pytest.warns(SkippingWarning, match=r"8\d% of the multiply-accumulates are computed .*Layer 'd' is not in"):
        model.skip()
    assert not SkippingCNN(network(Common)).shortfall
