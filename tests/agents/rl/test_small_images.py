"""SB3's features extractor for small images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO

from prunegym import MaskVecEnv
from prunegym.agents import SmallImageExtractor
from prunegym.errors import InvalidInputError


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (1, 28), (3, 32), (3, 64)])
def test_every_pixel_and_every_number_counts(channels: int, side: int) -> None:
    image = spaces.Box(0, 255, (channels, side, side), np.uint8)
    space = spaces.Dict({"features": spaces.Box(-10, 10, (5,), np.float32), "image": image})
    torch.manual_seed(0)
    extractor = SmallImageExtractor(space, cnn_output_dim=16)
    seen = {"features": torch.randn(2, 5), "image": torch.rand(2, channels, side, side, requires_grad=True)}
    found = extractor(seen)
    assert found.shape == (2, extractor.features_dim) == (2, 21)
    assert torch.equal(found[:, :5], seen["features"])
    (slope,) = torch.autograd.grad(found.sum(), seen["image"])
    assert (slope != 0).float().mean() > 0.9
    sizes = [layer.out_features for layer in extractor.cnns["image"] if isinstance(layer, torch.nn.Linear)]
    assert sizes == [16]


def test_without_an_image_it_says_what_to_do() -> None:
    env = MaskVecEnv("prunegym/ChannelMask-v0", 2)
    with pytest.raises(InvalidInputError, match="Make the environment with observation='image'"):
        PPO("MultiInputPolicy", env, policy_kwargs={"features_extractor_class": SmallImageExtractor})
    with pytest.raises(InvalidInputError, match="cnn_output_dim is 0; a whole number"):
        SmallImageExtractor(env.observation_space, 0)
