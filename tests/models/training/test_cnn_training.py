"""Training from scratch: it learns, it is repeatable, and a resumed run ends with the very same weights."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.data.dataset import Dataset
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.data.splits import from_arrays
from prunegym.models.storage.run_state import load_state, save_state
from prunegym.models.training.cnn_training import TrainConfig, accuracy, epoch_batches, train
from prunegym.models.training.preparation import PrepareConfig, prepare
from prunegym.models.training.tuning import TuneConfig
from prunegym.models.zoo.network_registry import build


def digits(split: str = "train") -> Dataset:
    return load_dataset("digits", split)


def small(count: int = 200) -> Dataset:
    return digits().subset(torch.arange(count))


def network_with_dropout() -> nn.Module:
    """Batch norm (buffers), dropout (random numbers) and momentum (optimizer state): all that a resume can lose."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8 * 36, 10)
        )


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_learns_digits_better_than_a_linear_model() -> None:
    training, test = digits(), digits("test")
    linear = LogisticRegression(max_iter=300).fit(training.images.flatten(1).numpy() / 255, training.labels.numpy())
    bar = linear.score(test.images.flatten(1).numpy() / 255, test.labels.numpy())
    rows: list[dict[str, float]] = []
    network = build("simple-cnn-wide", in_channels=1, image_size=8)
    untrained = accuracy(network, test)
    result = train(network, training, TrainConfig(epochs=12), validation=digits("validation"), report=rows.append)
    assert result is network
    assert not network.training
    reached = accuracy(network, test)
    assert untrained < 0.3
    assert reached > bar > 0.93
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert rows[-1]["loss"] < 0.2 * rows[0]["loss"]
    assert rows[-1]["validation_accuracy"] == accuracy(network, digits("validation"))
    assert max(row["learning_rate"] for row in rows) > 10 * rows[-1]["learning_rate"]


class Interrupted(Exception):
    """Stands for the user's Ctrl-C."""


@pytest.mark.parametrize("at", [1, 3])
def test_resumed_run_gives_the_same_bits(tmp_path: Path, at: int) -> None:
    config = TrainConfig(epochs=4, batch_size=32, learning_rate=0.05, seed=3)
    whole = train(network_with_dropout(), small(), config)

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == at:
            raise Interrupted

    checkpoint = tmp_path / "run" / "state.safetensors"
    with pytest.raises(Interrupted):
        train(network_with_dropout(), small(), config, checkpoint=checkpoint, report=stop)
    torch.rand(17)  # another process has another global random state
    rows: list[dict[str, float]] = []
    resumed = train(network_with_dropout(), small(), config, checkpoint=str(checkpoint), report=rows.append)
    assert [row["epoch"] for row in rows] == list(range(at + 1, 5))
    assert same(whole, resumed)
    assert not same(whole, train(network_with_dropout(), small(), TrainConfig(4, 32, 0.05, seed=4)))


def test_finished_run_trains_no_further(tmp_path: Path) -> None:
    config = TrainConfig(epochs=2, batch_size=50)
    path = tmp_path / "state.safetensors"
    first = train(network_with_dropout(), small(), config, checkpoint=path)
    written = path.read_bytes()
    rows: list[dict[str, float]] = []
    again = train(network_with_dropout(), small(), config, checkpoint=path, report=rows.append)
    assert rows == []
    assert same(first, again)
    assert path.read_bytes() == written


def test_checkpoint_of_another_configuration(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    train(network_with_dropout(), small(), TrainConfig(epochs=1), checkpoint=path)
    with pytest.raises(InvalidInputError) as caught:
        train(network_with_dropout(), small(), TrainConfig(epochs=1, seed=1), checkpoint=path)
    message = str(caught.value)
    assert message.startswith(f"{path} was written with other settings ({{'epochs': 1, ")
    assert "'seed': 0" in message
    assert "'seed': 1" in message
    assert message.endswith("Give the same options, or another folder.")


def test_checkpoint_of_other_images(tmp_path: Path) -> None:
    data, config = small(), TrainConfig(epochs=1)
    train(network_with_dropout(), data, config, checkpoint=tmp_path / "state.safetensors")
    inverted = dataclasses.replace(data, images=255 - data.images)
    with pytest.raises(InvalidInputError, match=r"has other inputs \(training images\)"):
        train(network_with_dropout(), inverted, config, checkpoint=tmp_path / "state.safetensors")


class Viewing(nn.Module):
    """``view`` cannot flatten a map whose channels lie last in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x))
        return self.head(x.view(x.size(0), -1))


def test_a_network_that_views_maps() -> None:
    images = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = from_arrays((images, torch.arange(40) % 3), (images, torch.arange(40) % 3), name="three")["train"]
    network = train(Viewing(), data, TrainConfig(epochs=1, batch_size=8), validation=data)
    masked, policy = prepare(network, data, PrepareConfig(None, TuneConfig(0.9, epochs=1), hidden=4))
    assert masked(data.batch(torch.arange(2)), torch.ones(2, 4)).shape == (2, 3)
    assert policy.macs > 0


def test_checkpoint_of_another_network_or_kind(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    config = TrainConfig(epochs=1)
    train(network_with_dropout(), small(), config, checkpoint=path)
    with pytest.raises(
        InvalidInputError, match=r"is a checkpoint of another network or other gates \(the network does"
    ):
        train(build("simple-cnn", in_channels=1, image_size=8), small(), config, checkpoint=path)
    save_state(path, {"epoch": 1, "weights": torch.ones(1)})
    with pytest.raises(
        InvalidInputError, match=r"is not a checkpoint of a training run; its keys are \['epoch', 'weights'\]\.$"
    ):
        train(network_with_dropout(), small(), config, checkpoint=path)


def test_checkpoint_is_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    train(network_with_dropout(), small(), TrainConfig(epochs=1), checkpoint=path)
    assert set(load_state(path)) == {"done", "state", "config", "inputs"}


def test_validation_images_are_never_trained_on(tmp_path: Path) -> None:
    """Other validation images, or none, change no weight."""
    config = TrainConfig(epochs=2, batch_size=50)
    plain = train(network_with_dropout(), small(), config)
    watched = train(network_with_dropout(), small(), config, validation=digits("validation"), report=lambda row: None)
    assert same(plain, watched)


def test_training_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    train(network_with_dropout(), small(), TrainConfig(epochs=1))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("count", "size", "shape"), [(100, 32, (3, 32)), (96, 32, (3, 32)), (10, 32, (1, 10))])
def test_batches_take_each_image_at_most_once(count: int, size: int, shape: tuple[int, int]) -> None:
    batches, _ = epoch_batches(count, size, seed=1, epoch=0)
    assert batches.shape == shape
    assert len(batches.unique()) == batches.numel()
    assert set(batches.flatten().tolist()) <= set(range(count))
    assert torch.equal(batches, epoch_batches(count, size, seed=1, epoch=0)[0])
    assert not torch.equal(batches, epoch_batches(count, size, seed=1, epoch=1)[0])
    assert not torch.equal(batches, epoch_batches(count, size, seed=2, epoch=0)[0])


def test_diverging_loss() -> None:
    with pytest.raises(
        InvalidInputError,
        match=r"^The training loss became (nan|inf) in epoch \d\. Lower the learning rate \(1e\+18\)\.$",
    ):
        train(network_with_dropout(), small(), TrainConfig(epochs=3, learning_rate=1e18, batch_size=20))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (build("simple-cnn", 5, 1, 8), "output per image has shape (5,), but data set 'digits' has 10 classes"),
        (nn.Conv2d(1, 10, 3), "output per image has shape (10, 6, 6), but data set 'digits' has 10 classes"),
        (build("simple-cnn", 10, 3, 8), "network is a SimpleCNN, which cannot run a normalised image of data set"),
        ("resnet20", "network is a str; a torch module is needed, e.g. prunegym.build(name)"),
    ],
)
def test_a_network_that_does_not_fit_the_data_set(network: nn.Module, message: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        train(network, small(), TrainConfig(epochs=1))


def test_validation_images_that_do_not_fit_are_told_before_the_first_epoch(tmp_path: Path) -> None:
    held_out, path = digits("validation"), tmp_path / "state.safetensors"
    large = dataclasses.replace(held_out, images=held_out.images.repeat(1, 1, 2, 2))
    more = dataclasses.replace(held_out, classes=tuple("abcdefghijkl"))
    for validation, message in ((large, r"takes images of shape \(1, 8, 8\)"), (more, "has 12 classes")):
        with pytest.raises(InvalidInputError, match=message):
            train(network_with_dropout(), small(), TrainConfig(epochs=1), validation=validation, checkpoint=path)
    assert not path.exists()


def test_validation_classes_are_matched_by_name() -> None:
    names = tuple("abcdefghij")
    named = dataclasses.replace(small(), classes=names)
    held_out = dataclasses.replace(digits("validation"), classes=names)
    reversed_names = dataclasses.replace(held_out, classes=names[::-1], labels=9 - held_out.labels)
    rows: list[dict[str, float]] = []
    for validation in (held_out, reversed_names):
        train(network_with_dropout(), named, TrainConfig(2, 20), validation=validation, report=rows.append)
    assert rows[1]["validation_accuracy"] == rows[3]["validation_accuracy"] > 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs is 0; a whole number of at least 1 is needed."),
        ({"batch_size": -1}, "batch_size is -1; a whole number of at least 1 is needed."),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; a finite number above 0 is needed."),
        ({"learning_rate": float("nan")}, "learning_rate is nan; a finite number above 0 is needed."),
    ],
)
def test_configuration_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        TrainConfig(**arguments)  # type: ignore[arg-type]


def test_unknown_precision() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown precision 'bf16'\..* Known: auto, bfloat16, float32\."):
        TrainConfig(precision="bf16")  # type: ignore[arg-type]


def test_accuracy_counts_every_image_once_and_restores_the_mode() -> None:
    class Brightest(nn.Module):
        """Logit 1 where the first pixel is bright."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training
            bright = images[:, 0, 0, 0] > 0
            return torch.stack([~bright, bright], 1).float()

    test = digits("test")
    images = test.images.clone()
    images[:, 0, 0, 0] = torch.where(torch.arange(600) % 3 == 0, 255, 0)
    data = Dataset("mine", "test", images, (torch.arange(600) < 300).long(), ("a", "b"), test.normalisation)
    expected = sum((number % 3 == 0) == (number < 300) for number in range(600)) / 600
    network = Brightest().train()
    for batch_size in (7, 250, 600, 1000):
        assert accuracy(network, data, batch_size=batch_size) == expected
    assert network.training
