"""Environments, evaluation and results on images read as needed, on floats, and on other targets than classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prunegym import MaskVecEnv, evaluate, from_arrays, from_torch, make_task, prepare, train
from prunegym.agents.comparison.comparing import compare
from prunegym.agents.comparison.results import Result
from prunegym.envs.simulator import MaskSimulator
from prunegym.errors import InvalidInputError
from prunegym.models import Dataset, MaskedCNN, PrepareConfig, TrainConfig, accuracy
from prunegym.models.tasks.metrics import METRICS

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (48, 3, 8, 8), dtype=torch.uint8, generator=GENERATOR)
TARGETS: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
    "labels": (torch.randint(2, (48, 4), generator=GENERATOR), (4,)),
    "numbers": (torch.randn(48, 2, generator=GENERATOR), (2,)),
    "maps": (torch.randint(3, (48, 8, 8), generator=GENERATOR), (3, 8, 8)),
    "none": (None, (5,)),
}


def cnn(output: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(1)
    body = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()
    if len(output) == 3:
        return nn.Sequential(*body, nn.Conv2d(8, output[0], 1)).eval()
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, output[0])).eval()


def data_of(kind: str) -> dict[Any, Dataset]:
    targets = TARGETS[kind][0]
    halves = (None, None) if targets is None else (targets[:32], targets[32:])
    return from_arrays((IMAGES[:32], halves[0]), (IMAGES[32:], halves[1]), name=kind)


@pytest.mark.parametrize("kind", TARGETS)
def test_rewards_pay_the_metric_of_the_targets(kind: str) -> None:
    data, masked = data_of(kind), MaskedCNN(cnn(TARGETS[kind][1]), torch.zeros(1, 3, 8, 8)).freeze()
    task = make_task(masked, data, split="test", reward="macs", penalty=0.25)
    simulator = MaskSimulator(task, 6, np.random.default_rng(0))
    simulator.reset(list(range(6)))
    bits = np.random.default_rng(1).integers(0, 2, (6, masked.mask_size))
    mask = torch.from_numpy(bits).float()
    result = simulator.step(bits)
    with torch.inference_mode():
        images = data["test"].batch(torch.arange(6))
        outputs, dense = masked(images, mask), masked(images)
    targets = dense if kind == "none" else data["test"].labels[:6]
    if kind == "numbers":  # R squared, with the variance of all training targets
        variance = TARGETS["numbers"][0][:32].double().var(0, unbiased=False).mean()
        expected = 1 - (outputs.double() - targets).square().mean(1) / variance
    else:
        name = {"labels": "f1", "maps": "positions_right", "none": "agreement"}[kind]
        expected = METRICS[name](outputs, targets)
    expected = expected - 0.25 * masked.cost.mac_share(mask)
    np.testing.assert_allclose(result.reward, expected.numpy(), atol=1e-5)
    assert result.outcome is not None
    np.testing.assert_allclose(
        result.outcome.summary()["score"] - 0.25 * result.outcome.mac_share.numpy(), expected, atol=1e-5
    )


@pytest.mark.parametrize("kind", TARGETS)
def test_evaluation_and_stored_results_have_scores(kind: str, tmp_path: Path) -> None:
    data, network = data_of(kind), cnn(TARGETS[kind][1])
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8)).freeze()
    mask = (torch.arange(14) % 3 > 0).float()
    found = evaluate(mask, masked, data["test"], dense=network)
    with torch.inference_mode():
        images = data["test"].batch(torch.arange(16))
        outputs, dense = masked(images, mask.expand(16, -1)), network(images)
    judged = data["test"].answered(dense) if kind == "none" else data["test"]
    assert found.accuracy == pytest.approx(judged.objective.score(outputs, judged.labels).mean().item(), abs=1e-6)
    assert found.dense_accuracy == pytest.approx(judged.objective.score(dense, judged.labels).mean().item(), abs=1e-6)
    Result.of(found).save(tmp_path / "x.json", {"seed": 0})
    loaded = Result.load(tmp_path / "x.json", {"seed": 0})
    assert loaded is not None
    assert torch.equal(loaded.correct, found.correct)


def test_accuracy_of_images_without_targets_is_refused() -> None:
    data = data_of("none")["test"]
    with pytest.raises(InvalidInputError, match="no targets"):
        accuracy(cnn((5,)), data)
    with pytest.raises(InvalidInputError, match="no targets"):
        train(cnn((5,)), data, TrainConfig(epochs=1))


@pytest.mark.parametrize("given", [TensorDataset(IMAGES), DataLoader(TensorDataset(IMAGES)), IMAGES, [1, 2]])
def test_data_sets_of_other_kinds_are_refused_with_a_way_out(given: Any) -> None:
    network, masked = cnn((5,)), MaskedCNN(cnn((5,)), torch.zeros(1, 3, 8, 8)).freeze()
    for call in (
        lambda: train(network, given, TrainConfig(epochs=1)), lambda: prepare(network, given, PrepareConfig()),
        lambda: evaluate(torch.ones(14), masked, given), lambda: make_task(masked, given),
        lambda: accuracy(network, given),
    ):  # fmt: skip
        with pytest.raises(InvalidInputError, match=r"a Dataset is needed.*from_torch"):
            call()


def test_episodes_on_images_read_as_needed_are_those_in_memory() -> None:
    labels = torch.arange(48) % 5
    memory = from_arrays((IMAGES, labels), (IMAGES, labels), name="mine", pad=1, flip=True)
    lazy = from_torch(TensorDataset(IMAGES, labels), TensorDataset(IMAGES, labels), name="mine", pad=1, flip=True)
    found = []
    for data in (memory, lazy):
        masked = MaskedCNN(cnn((5,)), torch.zeros(1, 3, 8, 8)).freeze()
        env = MaskVecEnv(
            "prunegym/ChannelMask-v0", 5, model=masked, dataset=data, augment=True, seed=3, observation="image"
        )
        steps = [env.reset()]
        for _ in range(6):
            observation, rewards, _, infos = env.step(np.ones((5, 14), np.int8))
            steps += [observation, {"reward": rewards, "label": np.array([info["label"] for info in infos])}]
        found.append(steps)
    for one, other in zip(*found, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("images", [IMAGES.numpy().astype(np.uint16) * 257, IMAGES.float() / 255, IMAGES.float() - 100])
def test_observed_images_are_within_their_space(images: Any) -> None:
    labels = torch.arange(48) % 5
    data = from_arrays((images, labels), (images, labels), name="mine")
    masked = MaskedCNN(cnn((5,)), torch.zeros(1, 3, 8, 8)).freeze()
    task = make_task(masked, data, observation="image")
    simulator = MaskSimulator(task, 4, np.random.default_rng(0))
    observation = simulator.reset()
    for row in range(4):
        assert task.observation_space.contains({name: array[row] for name, array in observation.items()})
    assert simulator.snapshot().images.dtype == torch.uint8


def test_agents_are_compared_without_labels(tmp_path: Path) -> None:
    data, network = data_of("none"), cnn((5,))
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8)).freeze()
    found = compare(
        ["keep-all", "taylor"], masked, data["test"], seeds=(0,), out=tmp_path, train=data["train"],
        validation=data["validation"], dense=network,
    )  # fmt: skip
    keep, taylor = (row.figures["accuracy"].mean for row in found.rows)
    assert keep == 1
    assert 0 <= taylor <= 1
