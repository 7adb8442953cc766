"""Operations of common networks, in ONNX Runtime against torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models import MaskedCNN
from prunegym.models.export.onnx_model import export_onnx
from prunegym.models.storage.model_file import Bundle
from tests.models.export.test_onnx_export import info_of, session
from tests.models.slicing import randomise


class Middle(nn.Module):
    """A gate, a step that is tried, and a head that reads all of its outcome."""

    def __init__(self, step: Callable[[Middle, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.step = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 1), step
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.first(x)))
        return self.step(self, x).flatten(1)[:, ::5]


class Standardised(nn.Conv2d):
    """Its weight is computed, as in networks without norms."""

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


def attention(_: Middle, x: Tensor) -> Tensor:
    query, key, value = x.flatten(2).view(-1, 3, 4, 36).transpose(2, 3).unbind(1)
    return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])


def by_hand(_: Middle, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    query, key, value = torch.split(tokens, 4, dim=2)
    return (query @ key.transpose(1, 2) * 0.5).softmax(-1) @ value


def stacked(_: Middle, x: Tensor) -> Tensor:
    one, other = x.chunk(2, 1)
    return torch.stack([one, other.exp(), torch.maximum(one, other), (1 - one).abs()], 2) ** 2


def split_unevenly(_: Middle, x: Tensor) -> Tensor:
    parts = torch.split(x, [5, 7], dim=1)
    return torch.cat([parts[1] * 2, torch.add(parts[0], 1, alpha=3)], 1).select(2, -1)


def normalised(_: Middle, x: Tensor) -> Tensor:
    return x / (x.norm(p=2, dim=(2, 3), keepdim=True) + 1) + F.softplus(x) + x.expand_as(x) * (x * x).sqrt()


CASES: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: Middle(attention),
    "attention by hand": lambda: Middle(by_hand),
    "stack": lambda: Middle(stacked),
    "split": lambda: Middle(split_unevenly),
    "norms of vectors": lambda: Middle(normalised),
    "group norm": lambda: Middle(lambda s, x: s.n(x), n=nn.GroupNorm(3, 12)),
    "nearest": lambda: Middle(lambda _, x: F.interpolate(x, scale_factor=2)),
    "bilinear": lambda: Middle(lambda _, x: F.interpolate(x, (9, 13), mode="bilinear")),
    "bilinear, corners": lambda: Middle(lambda _, x: F.interpolate(x, (9, 13), mode="bilinear", align_corners=True)),
    "bicubic": lambda: Middle(lambda _, x: F.interpolate(x, (9, 13), mode="bicubic")),
    "shuffles": lambda: Middle(lambda _, x: F.channel_shuffle(F.pixel_shuffle(x, 2), 3)),
    "softmax without a dimension": lambda: Middle(lambda s, x: s.s(x.mean((2, 3))), s=nn.Softmax()),
    "standardised weights": lambda: Middle(lambda s, x: s.w(F.relu(x)), w=Standardised(12, 10, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_operations(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on a softmax without a dimension
        network = randomise(CASES[name]())
        masked = MaskedCNN(network, torch.zeros(1, 3, 6, 6), gates="all")
        model = Bundle(masked=masked, info=info_of("mine", (3, 6, 6), masked.output_shape[0]))
        run = session(export_onnx(model, tmp_path / "model.onnx", decide="input", pixels="unit"))
        for kept in (1.0, 0.5, 0.0):
            image, mask = torch.rand(1, 3, 6, 6), torch.rand(1, masked.mask_size) < kept
            (logits,) = run.run(None, {"images": image.numpy(), "mask": mask.numpy()})
            images = model.info.normalisation(image).contiguous()
            expected = network(images) if kept == 1 else masked(images, mask.float())
            torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_written_is_named_before_anything_is(tmp_path: Path) -> None:
    network = Middle(lambda _, x: torch.cumsum(torch.fft.rfft2(x).abs(), 1))
    masked = MaskedCNN(network, torch.zeros(1, 3, 6, 6))
    model = Bundle(masked=masked, info=info_of("mine", (3, 6, 6), masked.output_shape[0]))
    with pytest.raises(
        InvalidInputError, match=r"calls 'fft_rfft2' \(step .*\), 'cumsum' \(step .*\), which cannot be exported"
    ):
        export_onnx(model, tmp_path / "folder/model.onnx", decide="input")
    assert not (tmp_path / "folder").exists()
