"""``train-cnn``, ``prepare``, ``train`` and ``finetune``, on digits with settings that take seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prunegym import evaluate
from prunegym.models import DynamicCNN, TrainConfig, build, load_dataset, read_model, train
from prunegym.models.gating.static_policy import StaticPolicy
from tests.commands.command_line import CNN, GATES, PREPARE, RL, as_json, fail, first_filter, succeed

# Settings that take seconds make weak agents.
pytestmark = pytest.mark.filterwarnings("ignore::prunegym.agents.rl.monitor.CollapseWarning")


def test_train_cnn_says_how_it_was_made(made: Path) -> None:
    described = json.loads((made / "cnn/run.json").read_text())
    assert set(described) == {"settings", "inputs", "command", "seed", "versions", "machine", "seconds", "results"}
    assert described["settings"]["train"]["epochs"] == 12
    assert described["versions"]["torch"] == torch.__version__
    info = read_model(made / "cnn/cnn.safetensors").info
    assert info.metadata["dense_accuracy"] == described["results"]["dense_accuracy"]
    assert info.metadata["dense_accuracy"]["digits/test"] > 0.5


def test_train_cnn_goes_on_with_a_checkpoint_of_the_library(made: Path, tmp_path: Path) -> None:
    """A run that was begun in Python and interrupted ends as the one that the command made in one go."""

    def interrupt(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    config = TrainConfig(epochs=12, learning_rate=0.05)
    network, checkpoint = build("simple-cnn", 10, 1, 8), tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(network, load_dataset("digits"), config, checkpoint=checkpoint, report=interrupt)
    command = ["train-cnn", "simple-cnn", *CNN, "--set", "learning_rate=0.05", "--out", tmp_path]
    assert "has a checkpoint already. Add --resume" in fail(*command)
    succeed(*command, "--resume")
    resumed, whole = (read_model(path / "cnn.safetensors").masked.network for path in (tmp_path, made / "cnn"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_folder_with_a_run_is_not_written_over(made: Path) -> None:
    cnn, agent = made / "cnn", made / "agent"
    command = ["train-cnn", "simple-cnn", *CNN, "--out", cnn]
    assert "has a run with other settings (train.learning_rate: 0.05, not 0.1)" in fail(*command, "--resume")
    prepared = made / "prepared/prepared.safetensors"
    assert "has this run already. Add --resume" in fail("train", prepared, *RL, "--out", agent)
    assert "has a run with other settings" in fail("train", prepared, *RL, "--seed", "1", "--out", agent, "--resume")


def test_prepare_keeps_the_dense_accuracy_and_adds_its_own(made: Path) -> None:
    model = DynamicCNN.load(made / "prepared/prepared.safetensors")
    cnn = read_model(made / "cnn/cnn.safetensors")
    assert model.info.metadata["dense_accuracy"] == cnn.info.metadata["dense_accuracy"]
    assert set(model.info.metadata["prepared_accuracy"]) == {"digits/validation", "digits/test"}
    assert first_filter(model.masked.network) != first_filter(cnn.masked.network)


def test_an_agent_learns_on_images_that_its_cnn_never_saw(tmp_path: Path) -> None:
    cnn = ["train-cnn", "simple-cnn", *CNN[:2], "--epochs", "1", "--quiet", "--train-images", ":800"]
    succeed(*cnn, "--out", tmp_path / "cnn")
    rl = [tmp_path / "cnn/cnn.safetensors", *RL, "--out", tmp_path / "rl"]
    succeed("train", *rl, "--train-images", "800:")
    described = [json.loads((tmp_path / name / "run.json").read_text())["settings"] for name in ("cnn", "rl")]
    assert [settings["train_images"] for settings in described] == ["0:800", "800:1077"]
    assert "train_images" in fail("train", *rl, "--resume")
    for command, more in (("prepare", PREPARE), ("compare", ["--seeds", "1", "--quiet"])):
        given = [tmp_path / "cnn/cnn.safetensors"] if command == "prepare" else ["keep-all", "--model", "digits"]
        succeed(command, *given, *more, "--train-images", "800:", "--out", tmp_path / command)
        settings = json.loads((tmp_path / command / "run.json").read_text())["settings"]
        assert settings["train_images"] == "800:1077"
    assert "Give FROM:TO" in fail(*cnn[:-1], "2000:", "--out", tmp_path / "other")


def test_train_to_a_budget(made: Path, tmp_path: Path) -> None:
    command = ["train", made / "prepared/prepared.safetensors", *RL, "--target-macs", "0.65", "--out", tmp_path]
    document = as_json(*command)
    assert document["best"]["total_mac_share"] == pytest.approx(0.65, abs=0.01)
    assert document["best"]["penalty"] >= 0
    found = as_json("evaluate", tmp_path / "model.safetensors", "--split", "validation")
    assert found["total_mac_share"] == pytest.approx(0.65, abs=0.01)


@pytest.mark.parametrize("kind", ["--frozen", "--static", "--taylor"])
def test_prepare_variants(made: Path, tmp_path: Path, kind: str) -> None:
    file = made / "cnn/cnn.safetensors"
    document = as_json(
        "prepare", file, *(PREPARE if kind == "--frozen" else GATES), kind, "--target-macs", "0.6", "--out", tmp_path
    )
    model, cnn = DynamicCNN.load(tmp_path / "prepared.safetensors"), read_model(file).masked.network
    assert isinstance(model.policy, StaticPolicy) == (kind != "--frozen")
    same = all(torch.equal(cnn.state_dict()[name], value) for name, value in model.masked.network.state_dict().items())
    assert same == (kind == "--frozen")
    assert document["total_mac_share"]["digits/validation"] == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize("kinds", [["--frozen"], ["--frozen", "--static"], ["--frozen", "--taylor"], []])
def test_prepare_with_constants(made: Path, tmp_path: Path, kinds: list[str]) -> None:
    file = made / "cnn/cnn.safetensors"
    options = GATES if kinds[1:] else PREPARE
    command = ["prepare", file, *options, *kinds, "--target-macs", "0.6", "--compensation", "constant"]
    document = as_json(*command, "--out", tmp_path)
    assert document["kind"].endswith(", constants")
    model, cnn = DynamicCNN.load(tmp_path / "prepared.safetensors"), read_model(file).masked.network
    assert model.masked.constants.abs().max() > 0
    same = all(torch.equal(cnn.state_dict()[name], value) for name, value in model.masked.network.state_dict().items())
    assert same == bool(kinds)
    found = as_json("evaluate", tmp_path / "prepared.safetensors", "--split", "validation")
    assert found["total_mac_share"] == pytest.approx(document["total_mac_share"]["digits/validation"])
    assert (found["policy_mac_share"] == 0) == bool(kinds[1:])
    assert "a learnt constant for its readers" in succeed("inspect", tmp_path / "prepared.safetensors").stdout
    assert as_json("inspect", tmp_path / "prepared.safetensors")["compensation"] == "constant"


def test_constants_that_nothing_would_train_are_refused(made: Path, tmp_path: Path) -> None:
    command = ["prepare", made / "cnn/cnn.safetensors", "--out", tmp_path / "run", "--compensation"]
    assert "--compensation have no effect" in fail(*command, "constant", "--epochs", "0")
    assert "Did you mean 'constant'?" in fail(*command, "constants")


@pytest.mark.slow
def test_finetune_trains_constants_on(made: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    succeed(
        "prepare", made / "cnn/cnn.safetensors", *PREPARE, "--target-macs", "0.6", "--compensation", "constant",
        "--out", prepared,
    )  # fmt: skip
    as_json(
        "finetune", prepared / "prepared.safetensors", "--rounds", "1", "--episodes", "64", "--set", "n_envs=32",
        "--quiet", "--out", tmp_path / "run",
    )  # fmt: skip
    before = DynamicCNN.load(prepared / "prepared.safetensors").masked.constants
    turned = DynamicCNN.load(tmp_path / "run/turn-1/model.safetensors").masked.constants
    assert not torch.equal(before, turned)


def test_prepare_with_a_price_of_channels(made: Path, tmp_path: Path) -> None:
    command = ["prepare", made / "cnn/cnn.safetensors", *PREPARE, "--frozen", "--sparsity"]
    shares = []
    for sparsity in ("0", "1"):
        document = as_json(*command, sparsity, "--set", "tune.gate_learning_rate=0.05", "--out", tmp_path / sparsity)
        assert document["kind"] == "L1-sparse gates, CNN frozen"
        shares.append(document["total_mac_share"]["digits/validation"])
    assert shares[1] < shares[0] - 0.1
    met = as_json(*command, "1", "--target-macs", "0.6", "--out", tmp_path / "met")
    assert met["total_mac_share"]["digits/validation"] == pytest.approx(0.6, abs=0.1)
    assert "--sparsity has no effect" in fail(
        "prepare", made / "cnn/cnn.safetensors", "--taylor", "--sparsity", "1", "--out", tmp_path / "no"
    )


def test_prepare_resumes_to_the_same_model(made: Path, tmp_path: Path) -> None:
    """Imitation and tuning are taken from the run's checkpoints; the second call gives the first one's file."""
    command = ["prepare", made / "cnn/cnn.safetensors", *PREPARE, "--out", tmp_path]
    first = as_json(*command)
    (tmp_path / "prepared.safetensors").unlink()
    assert as_json(*command, "--resume") == first
    assert (tmp_path / "prepared.safetensors").is_file()


def test_train_resumes_to_the_same_number_of_steps(made: Path, tmp_path: Path) -> None:
    prepared = made / "prepared/prepared.safetensors"
    document = as_json("train", prepared, *RL, "--out", tmp_path)
    steps = json.loads((tmp_path / "monitor.json").read_text())["history"][-1]["timesteps"]
    assert steps == 64 * 2
    (tmp_path / "model.safetensors").unlink()
    assert as_json("train", prepared, *RL, "--out", tmp_path, "--resume") == document
    assert (tmp_path / "model.safetensors").is_file()
    assert (tmp_path / "start.safetensors").is_file()


def test_train_without_episodes_tells_where_the_gates_are(made: Path, tmp_path: Path) -> None:
    result = succeed("train", made / "prepared/prepared.safetensors", *RL, "--episodes", "0", "--out", tmp_path)
    assert "there was no reinforcement learning" in result.stdout
    assert (tmp_path / "model.safetensors").is_file()


def test_finetune_changes_cnn_and_policy_and_resumes(made: Path, tmp_path: Path) -> None:
    prepared = made / "prepared/prepared.safetensors"
    command = [
        "finetune", prepared, "--rounds", "1", "--episodes", "64", "--set", "n_envs=32", "--quiet",
        "--out", tmp_path,
    ]  # fmt: skip
    document = as_json(*command)
    assert [row["stage"] for row in document["rounds"]] == ["start", "turn 1, CNN", "turn 1, policy"]
    before, turned, best = (
        DynamicCNN.load(path)
        for path in (prepared, tmp_path / "turn-1/model.safetensors", tmp_path / "model.safetensors")
    )
    assert best.masked.frozen
    assert first_filter(before.masked.network) != first_filter(turned.masked.network)
    (chosen,) = (row for row in document["rounds"] if row["chosen"])
    assert chosen["reward"] == max(row["reward"] for row in document["rounds"])
    found = evaluate(best, best, load_dataset("digits", "validation"), penalty=0.3)
    assert [found.accuracy, found.total_mac_share] == pytest.approx([chosen["accuracy"], chosen["total_mac_share"]])
    assert as_json(*command, "--resume") == document
