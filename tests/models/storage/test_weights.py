"""Weights and states on disk: round trips, public checkpoints, and files that are damaged, hostile or foreign."""

from __future__ import annotations

import io
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from torch import nn

from prunegym.errors import InvalidInputError, MissingDataError
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.storage.weights import load_weights, read_weights, save_weights
from prunegym.models.training.cnn_training import accuracy
from prunegym.models.zoo.network_registry import build


def test_safetensors_round_trip(tmp_path: Path) -> None:
    network = build("resnet20", seed=1)
    network(torch.rand(4, 3, 32, 32))  # moves the running statistics of the norms: buffers count too
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    path = tmp_path / "deep" / "weights.safetensors"
    save_weights(network, path)
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]
    copy = load_weights(build("resnet20", seed=2), path)
    assert all(torch.equal(copy.state_dict()[name], tensor) for name, tensor in network.state_dict().items())
    with safetensors.safe_open(path, "numpy") as file:  # the oracle reads the file without us
        assert set(file.keys()) == set(network.state_dict())
        assert np.array_equal(file.get_tensor("linear.bias"), network.state_dict()["linear.bias"].numpy())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_public_forms_of_a_state_dict(tmp_path: Path, prefix: str, wrapped: bool) -> None:
    network = build("resnet20", seed=1)
    state = {prefix + name: tensor for name, tensor in network.state_dict().items() if "tracked" not in name}
    torch.save({"state_dict": state, "best_prec1": 91.7, "epoch": 200} if wrapped else state, tmp_path / "net.th")
    copy = load_weights(build("resnet20", seed=2), tmp_path / "net.th")
    for name, tensor in network.state_dict().items():
        assert "tracked" in name or torch.equal(copy.state_dict()[name], tensor)


class Hostile:
    """Its pickle calls ``os.mkdir`` when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "torch, legacy", "pickle", "beside the weights"])
def test_hostile_pickle_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    proof, path = tmp_path / "executed", tmp_path / "weights.pt"
    hostile = Hostile(proof)
    if form == "pickle":
        path.write_bytes(pickle.dumps(hostile))
    elif form == "beside the weights":
        torch.save({"state_dict": build("simple-cnn").state_dict(), "args": hostile}, path)
    else:
        torch.save(hostile, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(
        InvalidInputError,
        match=rf"^{re.escape(str(path))} is not a torch file of plain tensors \(.+\)\. "
        r"Files that could execute code are refused: save only the state dict and try again\.$",
    ):
        read_weights(path)
    assert not proof.exists()
    if form != "beside the weights":
        torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())
        assert proof.exists(), "the file was not hostile, so the test showed nothing"


def test_damaged_files(tmp_path: Path) -> None:
    """Hundreds of cut and altered files: an error of ours or a valid load, never another exception."""
    random = np.random.default_rng(0)
    path = tmp_path / "weights.pt"
    refused = 0
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save({"weight": torch.ones(5), "epoch": 1}, buffer, _use_new_zipfile_serialization=zipped)
        whole = buffer.getvalue()
        for trial in range(150):
            data = bytearray(whole)
            if trial % 3 == 0:
                data = data[: random.integers(len(data))]
            else:
                for at in random.integers(0, len(data), 5):
                    data[at] = random.integers(256)
            path.write_bytes(data)
            try:
                read_weights(path)
            except InvalidInputError as error:
                refused += 1
                assert str(error).startswith(f"{path} ")  # noqa: PT017 - either outcome is right
    assert refused > 100


def test_damaged_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(build("simple-cnn"), path)
    whole = path.read_bytes()
    for data in (b"", b"text", whole[:1000], whole[:-1], b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(InvalidInputError, match=r"is not a safetensors file \(.+\)\. It may be truncated\.$"):
            read_weights(path)


def test_missing_file(tmp_path: Path) -> None:
    for name in ("none.pt", "none.safetensors"):
        with pytest.raises(MissingDataError) as caught:
            read_weights(tmp_path / name)
        assert str(caught.value) == f"There is no checkpoint {tmp_path / name}. Check the path."
        assert isinstance(caught.value, FileNotFoundError)


def test_files_without_a_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save([torch.ones(1)], path)
    with pytest.raises(InvalidInputError, match=r"file\.pt has a list; a dict of tensors is needed\.$"):
        read_weights(path)
    torch.save({"epoch": 1, "lr": 0.1}, path)
    with pytest.raises(InvalidInputError, match=r"file\.pt has no tensors; its keys are \['epoch', 'lr'\]\.$"):
        read_weights(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    network = build("simple-cnn")
    with torch.no_grad():
        network.get_parameter("features.3.weight")[5, 2, 1, 1] = value
        network.get_parameter("linear.bias")[0] = value
    save_weights(network, tmp_path / "bad.safetensors")
    fresh = build("simple-cnn")
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(InvalidInputError, match=r"safetensors: 'features\.3\.weight' has NaN or infinite values\. G"):
        load_weights(fresh, tmp_path / "bad.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())


def test_weights_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(build("simple-cnn"), path)
    with pytest.raises(
        InvalidInputError,
        match=r"does not fit CifarResNet: missing 'conv1\.weight' \(nearest in the file: 'features\.0\.weight'\), .* "
        r"and \d+ more; not in the network 'features\.0\.bias' \(nearest: 'layer1\.0\.bn2\.bias'\), .*; of other "
        r"shapes 'linear\.weight' \(10, 2048\), here \(10, 64\)\. "
        r"Build the network with the arguments of the checkpoint's network\.$",
    ):
        load_weights(build("resnet20"), path)
    with pytest.raises(
        InvalidInputError,
        match=r"SimpleCNN: of other shapes 'linear\.weight' \(10, 2048\), here \(7, 2048\), 'linear\.b",
    ):
        load_weights(build("simple-cnn", num_classes=7), path)


@pytest.mark.slow
def test_public_resnet20(shared_data: Path) -> None:
    """The accuracy of the public CIFAR-10 checkpoint on JPEG images, as the shared data page has it: 81.03 %."""
    path = shared_data.parent / "checkpoints" / "resnet20-12fca82f.th"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    network: nn.Module = load_weights(build("resnet20"), path)
    test = load_dataset("cifar10-jpeg", "test", shared_data)
    assert len(test) == 10_000
    assert accuracy(network, test) == pytest.approx(0.8103, abs=1e-4)
