"""Another default dtype of torch changes no result."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from prunegym.agents import load_recipe, train_agent
from prunegym.envs.sb3_vec_env import MaskVecEnv
from prunegym.models import DynamicCNN, MaskedCNN, build, load_dataset, shipped_model
from prunegym.models.precision import new_tensors_in


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_is_the_same(dtype: torch.dtype) -> None:
    images = load_dataset("digits", "test").images[:20]
    expected = shipped_model().predict(images)
    with new_tensors_in(dtype):
        for model in (shipped_model(), shipped_model().skip("kernel"), shipped_model().skip("torch")):
            found = model.predict(images)
            assert torch.equal(found.masks, expected.masks)
            torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
        masked = MaskedCNN(build("simple-cnn", seed=3), torch.zeros(1, 3, 32, 32))
        assert masked.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32
    assert isinstance(model, DynamicCNN)


def test_an_environment_is_the_same() -> None:
    def episode() -> list[list[float]]:
        env = MaskVecEnv("prunegym/LayerwiseChannelMask-v0", 4, reward="macs", seed=0)
        observation = env.reset()
        assert isinstance(observation, dict)
        steps = [env.step(torch.ones(4, env.action_space.shape[0]).numpy())[1] for _ in range(3)]  # type: ignore[index]
        return [observation["features"].flatten().tolist(), *(reward.tolist() for reward in steps)]

    expected = episode()
    with new_tensors_in(torch.float64):
        assert episode() == expected


def test_training_is_the_same(tmp_path: Path) -> None:
    model, recipe = shipped_model(), dataclasses.replace(load_recipe("digits"), n_episodes=64, n_envs=32)
    splits = load_dataset("digits", "train").part(":64"), load_dataset("digits", "validation").part(":64")

    def trained(out: Path) -> list[float]:
        start = copy.deepcopy(model.policy)
        after = train_agent(model.masked, model.info, *splits, recipe, out, policy=start, progress=False).policy
        return torch.nn.utils.parameters_to_vector(after.parameters()).tolist()

    expected = trained(tmp_path / "float32")
    with new_tensors_in(torch.float64):
        assert trained(tmp_path / "float64") == expected


def test_the_default_comes_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), new_tensors_in(torch.float64):
        1 / 0  # noqa: B018
    assert torch.get_default_dtype() == torch.float32
