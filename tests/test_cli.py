"""Every command, as a user calls it, on digits with settings that take seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

from prunegym.cli import app
from prunegym.models import DynamicCNN, TrainConfig, build, load_dataset, read_model, train
from prunegym.models.gate_policy import StaticPolicy

# Settings that take seconds make weak agents.
pytestmark = pytest.mark.filterwarnings("ignore::prunegym.agents.callbacks.CollapseWarning")

KEYS = [
    "accuracy", "dense_accuracy", "prepared_accuracy", "kept_share", "mac_share", "policy_mac_share",
    "total_mac_share", "mac_share_std", "distinct_masks", "static_accuracy", "shuffled_accuracy", "reward", "images",
]  # fmt: skip
CNN = ["--dataset", "digits", "--epochs", "12", "--quiet"]
PREPARE = [
    "--epochs", "1", "--imitation-steps", "20", "--hidden", "8", "--grid", "2", "--feature-size", "160", "--quiet",
]  # fmt: skip
RL = ["--recipe", "digits", "--episodes", "64", "--n-envs", "32", "--quiet"]
MINE = """
import numpy as np

def thrifty(outcome):
    right = (outcome.logits.argmax(1) == outcome.labels).double()
    return right - outcome.penalty * outcome.mac_share**2

def too_short(outcome):
    return thrifty(outcome)[:1]

class FirstHalf:
    layerwise = True
    macs = 0

    def predict(self, observation):
        bits = np.zeros((len(observation["features"]), 32), dtype=np.int8)
        bits[:, :16] = 1
        return bits

not_an_agent = 3
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def as_json(*arguments: object) -> dict:
    return json.loads(succeed(*arguments, "--json").stdout)


def fail(*arguments: object) -> str:
    """Return the message of a command that fails: one line, nothing on standard output, exit code 2."""
    result = run(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def first_filter(network: nn.Module) -> list[float]:
    return network.state_dict()["features.0.weight"][0].flatten().tolist()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CNN, the same prepared, and an agent trained on that."""
    folder = tmp_path_factory.mktemp("made")
    succeed("train-cnn", "simple-cnn", *CNN, "--learning-rate", "0.05", "--out", folder / "cnn")
    succeed("prepare", folder / "cnn/cnn.safetensors", *PREPARE, "--out", folder / "prepared")
    succeed("train", folder / "prepared/prepared.safetensors", *RL, "--out", folder / "agent")
    return folder


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file of the user's own."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def test_module_runs_as_a_command_and_lists_commands() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "prunegym", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for command in (
        "list",
        "inspect",
        "train-cnn",
        "prepare",
        "train",
        "finetune",
        "evaluate",
        "compare",
        "predict",
        "export",
    ):
        assert f" {command} " in shown


def test_list_has_every_kind_of_name() -> None:
    document = as_json("list")
    assert list(document) == [
        "networks", "data_sets", "shipped_models", "rewards", "accuracy_terms", "recipes", "environments",
    ]  # fmt: skip
    assert document["environments"] == ["prunegym/ChannelMask-v0", "prunegym/LayerwiseChannelMask-v0"]
    assert "resnet20" in succeed("list").stdout


def test_inspect_tells_gates_prices_and_rejected_convolutions() -> None:
    document = as_json("inspect", "resnet20")
    assert document["gates"][0] == {"name": "layer1.0.conv1", "width": 16, "price": 294_912}
    assert document["mask_size"] == sum(gate["width"] for gate in document["gates"]) == 336
    assert document["total_macs"] > document["fixed_macs"] > 0
    assert set(document["rejected"]) >= {"conv1", "layer3.2.conv2"}
    assert "layer1.0.conv1" in succeed("inspect", "resnet20").stdout


def test_inspect_builds_a_network_for_a_data_set(made: Path) -> None:
    assert as_json("inspect", "simple-cnn", "--dataset", "digits")["image_shape"] == [1, 8, 8]
    document = as_json("inspect", made / "agent/model.safetensors")
    assert [entry["step"] for entry in document["metadata"]["history"]] == [
        "train-cnn", "prepare, gates", "train, digits",
    ]  # fmt: skip
    assert set(document["metadata"]["dense_accuracy"]) == {"digits/validation", "digits/test"}


def test_train_cnn_says_how_it_was_made(made: Path) -> None:
    described = json.loads((made / "cnn/run.json").read_text())
    assert set(described) == {"settings", "command", "seed", "versions", "machine", "seconds", "results"}
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
    with pytest.raises(KeyboardInterrupt):
        train(
            build("simple-cnn", 10, 1, 8), load_dataset("digits"), config, checkpoint=tmp_path / "checkpoint.pt",
            report=interrupt,
        )  # fmt: skip
    command = ["train-cnn", "simple-cnn", *CNN, "--learning-rate", "0.05", "--out", tmp_path]
    assert "has a checkpoint already. Add --resume" in fail(*command)
    succeed(*command, "--resume")
    resumed, whole = (read_model(path / "cnn.safetensors").masked.network for path in (tmp_path, made / "cnn"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_folder_with_a_run_is_not_written_over(made: Path) -> None:
    cnn, agent = made / "cnn", made / "agent"
    command = ["train-cnn", "simple-cnn", *CNN, "--out", cnn]
    assert "has a run with other settings (train)" in fail(*command, "--resume")
    prepared = made / "prepared/prepared.safetensors"
    assert "has this run already. Add --resume" in fail("train", prepared, *RL, "--out", agent)
    assert "has a run with other settings" in fail("train", prepared, *RL, "--seed", "1", "--out", agent, "--resume")


def test_prepare_keeps_the_dense_accuracy_and_adds_its_own(made: Path) -> None:
    model = DynamicCNN.load(made / "prepared/prepared.safetensors")
    cnn = read_model(made / "cnn/cnn.safetensors")
    assert model.info.metadata["dense_accuracy"] == cnn.info.metadata["dense_accuracy"]
    assert set(model.info.metadata["prepared_accuracy"]) == {"digits/validation", "digits/test"}
    assert first_filter(model.masked.network) != first_filter(cnn.masked.network)


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
    document = as_json("prepare", file, *PREPARE, kind, "--target-macs", "0.6", "--out", tmp_path)
    model, cnn = DynamicCNN.load(tmp_path / "prepared.safetensors"), read_model(file).masked.network
    assert isinstance(model.policy, StaticPolicy) == (kind != "--frozen")
    same = all(torch.equal(cnn.state_dict()[name], value) for name, value in model.masked.network.state_dict().items())
    assert same == (kind == "--frozen")
    assert document["total_mac_share"]["digits/validation"] == pytest.approx(0.6, abs=0.1)


def test_prepare_with_a_price_of_channels(made: Path, tmp_path: Path) -> None:
    command = ["prepare", made / "cnn/cnn.safetensors", *PREPARE, "--frozen", "--sparsity"]
    shares = []
    for sparsity in ("0", "1"):
        document = as_json(*command, sparsity, "--gate-learning-rate", "0.05", "--out", tmp_path / sparsity)
        assert document["kind"] == "L1-sparse gates, CNN frozen"
        shares.append(document["total_mac_share"]["digits/validation"])
    assert shares[1] < shares[0] - 0.1
    met = as_json(*command, "1", "--target-macs", "0.6", "--out", tmp_path / "met")
    assert met["total_mac_share"]["digits/validation"] == pytest.approx(0.6, abs=0.1)
    assert "--sparsity would do nothing" in fail(
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


def test_finetune_changes_cnn_and_policy_and_resumes(made: Path, tmp_path: Path) -> None:
    prepared = made / "prepared/prepared.safetensors"
    command = [
        "finetune", prepared, "--rounds", "1", "--cnn-epochs", "1", "--episodes", "64", "--n-envs", "32", "--quiet",
        "--out", tmp_path,
    ]  # fmt: skip
    document = as_json(*command)
    assert [row["stage"] for row in document["rounds"]] == ["start", "turn 1, CNN", "turn 1, policy"]
    before, after = DynamicCNN.load(prepared), DynamicCNN.load(tmp_path / "model.safetensors")
    assert after.masked.frozen
    assert first_filter(before.masked.network) != first_filter(after.masked.network)
    assert as_json(*command, "--resume")["rounds"][-1] == document["rounds"][-1]


def test_evaluate_prints_exactly_the_documented_keys(made: Path) -> None:
    document = as_json("evaluate", made / "agent/model.safetensors")
    assert list(document) == KEYS
    assert document["images"] == 600
    assert document["total_mac_share"] == pytest.approx(document["mac_share"] + document["policy_mac_share"])
    assert document["reward"] == pytest.approx(document["accuracy"] - 0.5 * document["total_mac_share"])
    described = json.loads((made / "cnn/run.json").read_text())
    assert document["dense_accuracy"] == described["results"]["dense_accuracy"]["digits/test"]
    shown = succeed("evaluate", made / "agent/model.safetensors").stdout
    assert "shuffled" in shown


def test_evaluate_turns_the_dial(made: Path, tmp_path: Path) -> None:
    text = """prunegym/LayerwiseChannelMask-v0:
  env_kwargs: {reward: macs, accuracy: probability, penalty: [0.2, 0.8]}
  gate_policy: {hidden: 8}
  imitation: {steps: 200, batch_size: 64, mac_share: [0.9, 0.4]}
  n_envs: 32
  n_episodes: 32
"""
    (tmp_path / "turn.yaml").write_text(text)
    cnn, out = made / "cnn/cnn.safetensors", tmp_path / "out"
    succeed("train", cnn, "--recipe", tmp_path / "turn.yaml", "--quiet", "--out", out)
    found = {lam: as_json("evaluate", out / "model.safetensors", "--penalty", lam) for lam in ("0.2", "0.5", "0.8")}
    shares = [row["total_mac_share"] for row in found.values()]
    assert shares[0] > shares[1] > shares[2]
    assert found["0.8"]["reward"] == pytest.approx(found["0.8"]["accuracy"] - 0.8 * shares[2])
    assert as_json("evaluate", out / "model.safetensors") == found["0.5"], "the middle is the default"
    wrong = fail("evaluate", out / "model.safetensors", "--penalty", "0.9")
    assert "the policy was trained for lambdas from 0.2 to 0.8. Give one of these." in wrong


def test_evaluate_with_baselines_at_the_same_macs(made: Path) -> None:
    arguments = ["evaluate", made / "agent/model.safetensors", "--images", "100", "--baselines"]
    document = as_json(*arguments, "--dense", made / "cnn/cnn.safetensors")
    assert list(document) == [*KEYS, "baselines"]
    assert list(document["baselines"]["random"]) == KEYS
    assert document["baselines"]["L1"]["mac_share"] == pytest.approx(document["total_mac_share"], abs=0.1)
    assert document["images"] == 100


def test_evaluate_a_bare_cnn_keeps_all_channels(made: Path) -> None:
    document = as_json("evaluate", made / "cnn/cnn.safetensors")
    assert document["kept_share"] == 1
    assert document["accuracy"] == document["dense_accuracy"]


def test_a_user_s_reward_and_agent_are_found_in_the_current_folder(made: Path, mine: Path) -> None:
    prepared = made / "prepared/prepared.safetensors"
    succeed("train", prepared, *RL, "--reward", "mine:thrifty", "--penalty", "0.3", "--out", mine / "run")
    settings = json.loads((mine / "run/run.json").read_text())["settings"]["recipe"]["env_kwargs"]
    assert settings == {"reward": "mine:thrifty", "penalty": 0.3, "augment": True}
    document = as_json("evaluate", made / "cnn/cnn.safetensors", "--agent", "mine:FirstHalf")
    assert document["distinct_masks"] == 1
    assert document["kept_share"] == pytest.approx(32 / 48)


def test_mistakes_in_a_user_s_file_are_told_before_anything_is_trained(made: Path, mine: Path) -> None:
    cnn = made / "cnn/cnn.safetensors"
    train_it = ["train", cnn, "--recipe", "frozen", "--quiet", "--out", mine / "run"]
    message = fail(*train_it, "--reward", "mine:too_short")
    assert "The reward 'too_short' returned shape (1,); (4,) is needed, one number an episode." in message
    assert "mine has no 'nothing'" in fail(*train_it, "--reward", "mine:nothing")
    assert "Did you mean 'macs'?" in fail(*train_it, "--reward", "mac")
    assert "mine:not_an_agent" in fail("evaluate", cnn, "--agent", "mine:not_an_agent")
    assert not (mine / "run").exists()


def test_compare_agents_baselines_and_recipes(made: Path, mine: Path) -> None:
    command = [
        "compare", "digits", "random", "--agent", "mine:FirstHalf", "--model", made / "prepared/prepared.safetensors",
        "--seeds", "2", "--episodes", "64", "--n-envs", "32", "--images", "100", "--out", mine / "table", "--quiet",
    ]  # fmt: skip
    document = as_json(*command)
    assert [row["name"] for row in document["rows"]] == ["digits", "random", "mine:FirstHalf"]
    assert set(document["rows"][0]["seeds"]) == {"0", "1"}
    assert document["rows"][0]["figures"]["accuracy"]["half_width"] is not None
    assert json.loads((mine / "table/comparison.json").read_text()) == document
    assert "Add --resume" in fail(*command)
    shown = succeed(*command, "--resume").stdout
    assert "2 seeds" in shown


def test_predict_reads_image_files(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_dataset("digits", "test").images[:2]
    files = [tmp_path / f"{index}.png" for index in range(2)]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image[0].numpy()).save(file)
    model = made / "agent/model.safetensors"
    document = as_json("predict", *files, "--model", model)
    expected = DynamicCNN.load(model).predict(images)
    assert [row["label"] for row in document["images"]] == expected.names
    assert [row["macs"] for row in document["images"]] == [int(macs) for macs in expected.macs]
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30)).save("colour.jpg")
    assert "colour.jpg" in succeed("predict", "colour.jpg", "--model", model).stdout


def test_export_writes_what_onnx_runtime_runs(made: Path, tmp_path: Path) -> None:
    model, path = made / "agent/model.safetensors", tmp_path / "model.onnx"
    document = as_json("export", model, "--out", path)
    assert document["bytes"] == path.stat().st_size
    assert document["gates_cut"] == document["gates"] == 2
    images = load_dataset("digits", "test").images[:5]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = [session.run(["logits"], {"images": image[None]})[0] for image in images.numpy()]
    expected = DynamicCNN.load(model).predict(images)
    torch.testing.assert_close(torch.from_numpy(np.concatenate(found)), expected.logits, atol=1e-4, rtol=1e-4)
    shown = succeed("export", made / "cnn/cnn.safetensors", "--dense", "--pixels", "unit", "--out", path).stdout
    assert "images (1, 1, 8, 8) float32" in shown
    assert "CNN without a gate policy. Export it with" in fail("export", made / "cnn/cnn.safetensors", "--out", path)
    assert "--dense keeps all channels" in fail("export", model, "--dense", "--mask-input", "--out", path)
    assert "Unknown pixels 'int8'. Did you mean 'uint8'?" in fail("export", model, "--pixels", "int8", "--out", path)


def test_quantize_writes_a_smaller_file_that_every_command_takes(made: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.safetensors"
    document = as_json("quantize", "digits", "--out", small)
    assert document["bytes"] == small.stat().st_size
    assert document["ratio"] == document["bytes"] / document["bytes_before"] < 0.3
    before, after = as_json("evaluate", "digits"), as_json("evaluate", small)
    assert after["accuracy"] > before["accuracy"] - 0.003
    assert after["dense_accuracy"] == before["dense_accuracy"]  # losses are counted from the original network
    assert as_json("inspect", small)["metadata"]["history"][-1]["step"] == "quantize, int8 weights"
    assert "small.safetensors" in succeed("quantize", made / "cnn/cnn.safetensors", "--out", small).stdout
    assert "There is no model file none.safetensors" in fail("quantize", "none.safetensors", "--out", small)


def test_latency_is_measured_trained_for_and_evaluated(made: Path, tmp_path: Path) -> None:
    model, table = made / "prepared/prepared.safetensors", tmp_path / "table.json"
    document = as_json("latency", model, "--out", table, "--rounds", "2", "--masks", "2", "--threads", "1")
    assert document["execution"] == "torch"
    assert document["dense_seconds"] > 0
    assert document["policy_seconds"] > 0
    assert "error end to end" in succeed("latency", model, "--out", table, "--rounds", "2", "--masks", "2").stdout
    assert as_json("evaluate", model, "--latency", table)["latency_share"] > 0
    assert "time: by the latency table" in succeed("evaluate", model, "--latency", table).stdout
    line = ["train", model, *RL, "--reward", "latency"]
    succeed(*line, "--latency-table", table, "--out", tmp_path / "run")
    assert (tmp_path / "run/model.safetensors").is_file()
    assert "needs latency_table=" in fail(*line, "--out", tmp_path / "other")
    assert "Unknown execution 'kernl'. Did you mean 'kernel'?" in fail(
        "latency", model, "--out", table, "--execution", "kernl"
    )


@pytest.mark.parametrize("execution", ["auto", "torch"])
def test_execution_changes_no_figure(made: Path, execution: str) -> None:
    arguments = ["evaluate", made / "agent/model.safetensors", "--images", "200"]
    expected, found = as_json(*arguments), as_json(*arguments, "--execution", execution)
    assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=0.006)
    assert found["kept_share"] == pytest.approx(expected["kept_share"], abs=1e-3)
    assert "Unknown execution 'karnel'. Did you mean 'kernel'?" in fail(*arguments, "--execution", "karnel")


def test_profile_tells_times_what_is_taken_and_why(made: Path) -> None:
    document = as_json("profile", made / "agent/model.safetensors", "--rounds", "1", "--batch", "2")
    assert document["taken"] in document["skipping"]
    assert document["taken"] in document["reason"]
    assert {"torch", "full", "full-channels-last", "masked"} <= document["skipping"].keys()
    assert {"eager", "norm folded", "channels_last", "traced, frozen"} <= document["dense"].keys()
    assert min(document["ratios"].values()) > 0
    assert min(value for name, value in document["ratios"].items() if name.startswith("dense")) == 1
    assert {"processor", "threads", "torch", "kernel"} <= document["machine"].keys()
    assert 0 < document["mac_share"] < 1.1
    if "kernel" in document["skipping"]:
        layers = [row["layer"] for row in document["layers"]]
        assert "decide features.0" in layers
        assert layers[0] == "load"
        assert layers[-1] == "store"
    assert [gate["layer"] for gate in document["gates"]] == ["features.0", "features.3"]
    assert all(gate["seconds_compact"] > 0 and gate["seconds_full"] > 0 for gate in document["gates"])
    bare = as_json("profile", "simple-cnn", "--rounds", "1", "--image-size", "16")
    assert bare["image_shape"] == [3, 16, 16]
    assert bare["masks"] == "given"
    assert 0.3 <= bare["kept_share"] <= 0.7
    shown = succeed("profile", "simple-cnn", "--rounds", "1").stdout
    assert "the fastest of" in shown
    assert "masked channels are" in shown
    assert "is for networks of the zoo" in fail("profile", "digits", "--image-size", "16")


def test_errors_are_one_line_that_says_what_would_be_right(made: Path, tmp_path: Path) -> None:
    cnn, out = made / "cnn/cnn.safetensors", tmp_path / "out"
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    assert "Unknown model 'simple-cn'. Did you mean 'simple-cnn'?" in fail("inspect", "simple-cn")
    assert "Unknown model 'vgg15'. Did you mean 'vgg1" in fail("train-cnn", "vgg15", "--out", out)
    assert "Did you mean 'digits'?" in fail("train-cnn", "simple-cnn", "--dataset", "digit", "--out", out)
    assert "Unknown precision 'half'." in fail("train-cnn", "simple-cnn", "--precision", "half", "--out", out)
    assert "is a network with fresh weights. Train it first" in fail("evaluate", "simple-cnn")
    assert "There is no model file nowhere.safetensors." in fail("evaluate", "nowhere.safetensors")
    assert "Unknown recipe 'froze'. Did you mean 'frozen'?" in fail("train", cnn, "--recipe", "froze", "--out", out)
    assert "is a CNN without a gate policy" in fail("finetune", cnn, "--out", out)
    assert "is a CNN without a gate policy" in fail("predict", broken, "--model", cnn)
    assert "is no image file that Pillow can read" in fail(
        "predict", broken, "--model", made / "agent/model.safetensors"
    )
    assert "There is no image gone.png." in fail("predict", "gone.png", "--model", made / "agent/model.safetensors")
    assert "--images is 601; digits/test has 600 images." in fail("evaluate", cnn, "--images", "601")
    assert "leave out --static and --frozen" in fail("prepare", cnn, "--taylor", "--frozen", "--out", out)
    assert "no folder. Give the folder" in fail("evaluate", cnn, "--data-root", tmp_path / "nowhere")
    assert not out.exists()


def test_demo_twice_in_one_folder(tmp_path: Path) -> None:
    command = ["demo", "--episodes", "256", "--quiet", "--out", tmp_path / "demo"]
    for _ in range(2):
        document = as_json(*command)
    assert list(document["results"])[:3] == ["PPO", "gates before PPO", "keep all"]
    assert len(document["predictions"]) == 8
    with Image.open(tmp_path / "demo/masks.png") as picture:
        assert picture.size[0] > 500
    assert DynamicCNN.load(tmp_path / "demo/model.safetensors").info.dataset == "digits"
