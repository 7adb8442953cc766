"""The main things on a CUDA device give what they give on the CPU."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from prunegym.agents.evaluation.evaluator import evaluate
from prunegym.agents.rl.recipe_files import load_recipe
from prunegym.agents.rl.trainer import train_agent
from prunegym.envs import MaskVecEnv
from prunegym.models import DynamicCNN, SkippingCNN, load_dataset, shipped_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device that torch can use")


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32, which torch's convolutions take by default, rounds to three digits: bits near the threshold would flip."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def images(batch: int = 16) -> torch.Tensor:
    return load_dataset("digits", "test").images[:batch]


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("given", [False, True])
def test_skipping_on_cuda(batch: int, given: bool) -> None:
    """In every way that there is; the compiled kernel is for the CPU and says so."""
    model = shipped_model("digits")
    normalised = model.prepare_images(images(batch))
    expected = model.run(normalised)
    mask = expected.mask if given else None
    masked, policy = copy.deepcopy(model.masked).cuda(), copy.deepcopy(model.policy).cuda()
    fast = SkippingCNN(masked, policy)
    assert "kernel" in fast.unavailable
    for way in ("auto", *fast.available):
        output, used = SkippingCNN(masked, policy, way)(normalised.cuda(), None if mask is None else mask.cuda())
        assert output.is_cuda
        assert torch.equal(used.cpu(), expected.mask)
        assert torch.allclose(output.cpu(), expected.output, rtol=1e-3, atol=1e-3)


def test_a_model_moves_to_cuda() -> None:
    expected = shipped_model("digits").predict(images())
    model = shipped_model("digits").skip().cuda()
    found = model.predict(images())
    assert torch.equal(found.masks.cpu(), expected.masks)
    assert torch.allclose(found.logits.cpu(), expected.logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["prunegym/ChannelMask-v0", "prunegym/LayerwiseChannelMask-v0"])
def test_episodes_on_cuda(name: str) -> None:
    rewards = []
    for device in ("cpu", "cuda"):
        env = MaskVecEnv(name, 8, seed=0, device=device)
        env.reset()
        env.action_space.seed(0)
        for _ in range(20):
            actions = np.stack([env.action_space.sample() for _ in range(8)])
            _, reward, _, _ = env.step(actions)
            rewards.append(reward)
    assert np.allclose(rewards[:20], rewards[20:], atol=1e-3)


def test_evaluation_on_cuda() -> None:
    few = load_dataset("digits", "test").subset(torch.arange(100))
    expected = evaluate(shipped_model("digits"), None, few)
    found = evaluate(shipped_model("digits"), None, few, device="cuda")
    assert found.accuracy == pytest.approx(expected.accuracy, abs=0.011)
    assert found.kept_share == pytest.approx(expected.kept_share, abs=1e-3)


def test_training_on_cuda(tmp_path: Path) -> None:
    recipe = dataclasses.replace(load_recipe("digits"), n_envs=32, group=4, n_episodes=128, eval_every=2)
    model = shipped_model("digits")
    trained = train_agent(
        model.masked, model.info, load_dataset("digits", "train"), load_dataset("digits", "validation"), recipe,
        tmp_path, policy=model.policy, device="cuda", progress=False,
    )  # fmt: skip
    assert next(trained.parameters()).is_cuda
    assert (tmp_path / "model.safetensors").is_file()
    assert 0 < float(trained.predict(images()).masks.float().mean()) <= 1


def test_a_policy_from_cuda_beside_a_cnn_that_stayed() -> None:
    model = shipped_model("digits")
    moved = DynamicCNN(model.masked, copy.deepcopy(model.policy).cuda(), model.info)
    assert torch.equal(moved.predict(images()).masks, model.predict(images()).masks)
