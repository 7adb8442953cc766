"""Features: their sizes and limits, and their numbers against numpy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset
from prunegym.models.data.normalisation import Normalisation
from prunegym.models.gating.features import CLIP, Decision, MaskFeatures, decisions_of
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.zoo.network_registry import build
from prunegym.models.zoo.networks import SimpleCNN


def cnn(size: int = 8, widths: tuple[int, ...] = (4, 6)) -> MaskedCNN:
    torch.manual_seed(0)
    return MaskedCNN(SimpleCNN(image_size=size, widths=widths), torch.zeros(1, 3, size, size))


def dataset(count: int = 50, size: int = 8) -> Dataset:
    images = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    images[:, :, :, 0] = 7
    normalisation = Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    return Dataset("noise", "train", images, torch.zeros(count, dtype=torch.int64), ("only",), normalisation)


def grid_by_numpy(reads: Tensor, cells: int) -> np.ndarray:
    """Average and grid of each channel, computed in numpy: (batch, channels * (1 + cells ** 2))."""
    values = reads.double().numpy()
    batch, channels, height, width = values.shape
    average = values.mean((2, 3))
    if cells < 2:
        return average
    out = np.zeros((batch, channels, cells, cells))
    for i in range(cells):
        for j in range(cells):
            top, bottom = i * height // cells, -(-(i + 1) * height // cells)
            left, right = j * width // cells, -(-(j + 1) * width // cells)
            out[:, :, i, j] = values[:, :, top:bottom, left:right].mean((2, 3))
    return np.concatenate([average, out.reshape(batch, -1)], 1)


def test_decisions() -> None:
    masked = cnn()
    assert decisions_of(masked, True) == (Decision((0,), 4), Decision((1,), 6))
    assert decisions_of(masked, False) == (Decision((0, 1), 10),)


def test_sizes_of_resnet20() -> None:
    features = MaskFeatures(MaskedCNN(build("resnet20"), torch.zeros(1, 3, 32, 32)))
    assert features.sizes == [16 * 17] * 4 + [32 * 17] * 3 + [64 * 17] * 2
    one = MaskFeatures(MaskedCNN(build("resnet20"), torch.zeros(1, 3, 32, 32)), layerwise=False)
    assert one.sizes == [16 * 17]


@pytest.mark.parametrize(
    ("feature_size", "cells", "size"),
    # 6 channels on 4x4: averages 6, grids of 2x2 30, of 3x3 60, of 4x4 102.
    [(1, 0, 1), (5, 0, 5), (6, 0, 6), (29, 0, 6), (30, 2, 30), (59, 2, 30), (60, 3, 60), (101, 3, 60), (102, 4, 102)],
)
def test_feature_size_is_the_limit(feature_size: int, cells: int, size: int) -> None:
    masked = MaskedCNN(SimpleCNN(in_channels=6, image_size=4, widths=(4,)), torch.zeros(1, 6, 4, 4))
    features = MaskFeatures(masked, feature_size=feature_size)
    assert features.sizes == [size]
    reads = torch.randn(2, 6, 4, 4)
    raw = features.raw(0, reads)
    assert raw.shape == (2, size)
    if feature_size >= 6:
        np.testing.assert_allclose(raw.numpy(), grid_by_numpy(reads, cells), rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_allclose(raw.mean(1).numpy(), reads.mean((1, 2, 3)).numpy(), atol=0.5)


def test_maps_smaller_than_the_grid() -> None:
    masked = cnn(4)
    features = MaskFeatures(masked)
    assert features.sizes == [3 * 17, 4 * 5]
    pooled = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    assert MaskFeatures(MaskedCNN(pooled, torch.zeros(1, 3, 8, 8))).sizes == [3 * 17, 4]


@pytest.mark.parametrize("layerwise", [True, False])
def test_calibration_against_numpy(layerwise: bool) -> None:
    masked, data = cnn(), dataset()
    features = MaskFeatures(masked, layerwise).calibrate(masked, data)
    images = data.batch(torch.arange(len(data)))
    reads = [images, torch.relu(torch.max_pool2d(masked.network.features[0](images), 2))]
    for index in range(len(features.decisions)):
        raw = grid_by_numpy(reads[index].detach(), 4)
        deviation = raw.std(0)
        expected = (raw - raw.mean(0)) / np.where(deviation > 1e-4, deviation, 1)
        got = features(index, reads[index])
        assert got.shape == (50, features.sizes[index])
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.detach().numpy(), expected.clip(-10, 10), rtol=1e-3, atol=2e-3)


def test_calibration_takes_as_many_images_as_asked_for_and_changes_no_cnn() -> None:
    masked, data = cnn(), dataset()
    state = copy.deepcopy(masked.state_dict())
    first = MaskFeatures(masked).calibrate(masked, data, images=10)
    second = MaskFeatures(masked).calibrate(masked, data, images=10)
    whole = MaskFeatures(masked).calibrate(masked, data)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
        assert not torch.equal(value, whole.state_dict()[key])
    assert all(torch.equal(value, state[key]) for key, value in masked.state_dict().items())


def test_features_are_clipped_and_finite() -> None:
    masked, data = cnn(), dataset()
    features = MaskFeatures(masked).calibrate(masked, data)
    got = features(0, torch.randn(4, 3, 8, 8) * 1e6)
    assert got.abs().max() == CLIP
    constant = features(0, torch.zeros(2, 3, 8, 8))
    assert torch.isfinite(constant).all()


def test_features_of_an_image_do_not_depend_on_its_neighbours() -> None:
    masked, data = cnn(), dataset()
    features = MaskFeatures(masked).calibrate(masked, data)
    images = data.batch(torch.arange(6))
    torch.testing.assert_close(features(0, images)[2:3], features(0, images[2:3]))


def test_state_dict_carries_the_calibration() -> None:
    masked, data = cnn(), dataset()
    features = MaskFeatures(masked).calibrate(masked, data)
    other = MaskFeatures(masked)
    other.load_state_dict(features.state_dict())
    images = data.batch(torch.arange(3))
    assert torch.equal(other(0, images), features(0, images))
    assert not list(features.parameters())


@pytest.mark.parametrize(("grid", "feature_size"), [(0, 10), (4, 0), (-1, 10)])
def test_errors(grid: int, feature_size: int) -> None:
    with pytest.raises(
        InvalidInputError, match=r"(grid|feature_size) is (0|-1); a whole number of at least 1 is needed"
    ):
        MaskFeatures(cnn(), grid=grid, feature_size=feature_size)
