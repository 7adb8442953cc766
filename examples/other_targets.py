"""Four tasks that are not one class per image: several labels, numbers, maps, and images without labels.

    python examples/other_targets.py labels   # or numbers, maps, none
    python examples/other_targets.py numbers --out runs/numbers

Each makes small pictures, trains a network, prepares gates, trains them by PPO, evaluates, and predicts, in less than a
minute. Only the targets differ: loss, metric and the reward's accuracy term follow from them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from prunegym import Dataset, DynamicCNN, Recipe, evaluate, from_arrays, train_agent
from prunegym.models import CNNInfo, ImitationConfig, PrepareConfig, TrainConfig, TuneConfig, prepare, train

SHAPES = ("disc", "bar", "ring")
SIZE, COUNT = 16, 1500
PENALTY = 1.0


def scenes(count: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return pictures (count, 3, 16, 16) uint8 of up to three shapes, and their targets of each kind."""
    random = np.random.default_rng(seed)
    present = random.random((count, 3)) < 0.5
    present[:, 0] |= ~present.any(1)
    centres = random.uniform(4, 12, (count, 3, 2))
    rows, columns = np.mgrid[:SIZE, :SIZE]
    across, down = np.abs(columns - centres[..., 1, None, None]), np.abs(rows - centres[..., 0, None, None])
    distance = np.hypot(across, down)
    bar = np.maximum(across[:, 1], 3 * down[:, 1]) < 5
    inside = np.stack([distance[:, 0] < 3, bar, np.abs(distance[:, 2] - 3) < 1], 1)
    inside &= present[..., None, None]
    pixels = random.normal(90, 25, (count, 3, SIZE, SIZE)) + 110 * inside
    maps = np.where(inside.any(1), inside.argmax(1) + 1, 0)
    numbers = inside.sum((2, 3)).astype(np.float32) / 20  # the area of each shape
    count_of_shapes = present.sum(1) - 1
    targets = {"none": count_of_shapes, "labels": present.astype(np.int64), "numbers": numbers, "maps": maps}
    return pixels.clip(0, 255).astype(np.uint8), targets


def data_for(task: str) -> dict[str, Dataset]:
    """Return the splits; for the task without labels it is the number of shapes, which only the network learns."""
    classes = {"labels": SHAPES, "maps": ("background", *SHAPES), "none": ("one", "two", "three")}.get(task)
    (images, targets), (others, expected) = scenes(COUNT, 0), scenes(500, 1)
    return from_arrays((images, targets[task]), (others, expected[task]), name=f"scenes-{task}", classes=classes)


def network_for(task: str, outputs: int) -> nn.Module:
    """Return a small network, for maps one without pooling."""
    body: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 32)):
        body += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    if task == "maps":
        return nn.Sequential(*body, nn.Conv2d(32, outputs, 1))
    head = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, outputs)
    return nn.Sequential(*body[:6], nn.MaxPool2d(2), *body[6:], *head)


def run(task: str, out: Path) -> tuple[float, float]:
    """Run a task; return the reward on test images before and after PPO."""
    torch.manual_seed(0)
    data = data_for(task)
    network = network_for(task, data["train"].outputs)
    train(network, data["train"], TrainConfig(epochs=8, batch_size=64, learning_rate=0.02))
    if task == "none":  # from here on no labels are used: gates learn to agree with the network
        images = {split: (part.images, None) for split, part in data.items()}
        data = from_arrays(images["train"], images["test"], validation=images["validation"], name="scenes-none")
    config = PrepareConfig(ImitationConfig(steps=40), TuneConfig(target_macs=0.8, epochs=1, batch_size=64))
    masked, gates = prepare(network, data["train"], config)
    recipe = Recipe(
        task, env_kwargs={"reward": "macs", "accuracy": "metric", "penalty": PENALTY}, n_envs=128, group=8,
        n_episodes=128 * 40, n_minibatches=2, eval_every=10,
        hyperparameters={"learning_rate": 1e-3, "n_epochs": 3, "gamma": 1.0, "gae_lambda": 1.0, "ent_coef": 0.0},
    )  # fmt: skip
    info = CNNInfo.of("scenes", data["train"])
    model = train_agent(masked, info, data["train"], data["validation"], recipe, out, policy=gates, progress=False)
    before, after = (
        evaluate(one, None, data["test"], penalty=PENALTY)
        for one in (DynamicCNN.load(out / "start.safetensors", network), model)
    )
    metric = data["test"].objective.name("metric")
    for name, found in (("prepared", before), ("after PPO", after)):
        figures = f"{metric} {found.accuracy:.3f} (dense {found.dense_accuracy:.3f}), MACs {found.total_mac_share:.3f}"
        print(f"{name}: {figures}, reward {found.reward:.3f}")
    print("first test images:", "; ".join(model.predict(data["test"].images[:3]).names))
    return before.reward, after.reward


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("labels", "numbers", "maps", "none"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        run(options.task, options.out or Path(made) / "run")


if __name__ == "__main__":
    main()
