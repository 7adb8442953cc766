"""The examples of rewards without a gradient: their rewards are correct, and they run."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunegym.models import DynamicCNN, build, load_dataset, rollout, shipped_model
from tests import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    names = ("no_gradient", "hard_cap", "costly_errors")
    yield [importlib.import_module(name) for name in names]
    for name in names:
        sys.modules.pop(name, None)


def test_rewards_are_those_of_the_policys_masks(examples) -> None:
    common, hard_cap, costly = examples
    model, test = shipped_model("digits"), load_dataset("digits", "test").subset(torch.arange(200))
    policy = common.shifted(model.policy, -2.5)
    with torch.inference_mode():
        run = rollout(model.masked, policy, test.batch(torch.arange(200)))
    right, share = run.output.argmax(1) == test.labels, model.masked.cost.mac_share(run.mask)
    in_time = right & (share <= hard_cap.CAP)
    assert 0 < in_time.sum() < right.sum() < 200
    torch.testing.assert_close(common.rewards(model, policy, test, hard_cap.in_time), in_time.double())
    price = torch.where(test.labels >= 5, 10.0, 1.0).double()
    torch.testing.assert_close(
        common.rewards(model, policy, test, costly.priced), -price * ~right - 10 * share, rtol=1e-5, atol=1e-5
    )


def test_the_baseline_gets_the_best_offset(examples) -> None:
    common, hard_cap, _ = examples
    model, validation = shipped_model("digits"), load_dataset("digits", "validation")
    chosen = common.best(model, [model.policy], validation, hard_cap.in_time)
    found = common.rewards(model, chosen, validation, hard_cap.in_time).mean()
    for offset in (-2.75, -2.0, 0.0):
        other = common.shifted(model.policy, offset)
        assert found >= common.rewards(model, other, validation, hard_cap.in_time).mean()
    assert found > 0.3, "every image is above the cap where nothing is shifted"


@pytest.mark.slow
def test_the_comparison_runs(examples, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    common, _, costly = examples
    monkeypatch.setattr(sys, "argv", ["costly_errors.py", "2"])
    common.compare(costly.priced, targets=(0.15,), weights=costly.PRICES, epochs=0.5, episodes=1024)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["seed 0", "seed 1"]
    assert lines[2].startswith("PPO - straight-through: ")
    assert lines[2].endswith("over 2 seeds")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["labels", "numbers", "maps", "none"])
def test_ppo_raises_the_reward_on_other_targets(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before, after = importlib.import_module("other_targets").run(task, tmp_path / "run")
    assert after > before + 0.1
    assert "first test images: " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["prunegym/ChannelMask-v0", "prunegym/LayerwiseChannelMask-v0"])
def test_ppo_in_one_file_saves_macs(env_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the style of CleanRL, over make_vec: a few updates at a high price, and the answers stay right."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("cleanrl_ppo")
    steps = 20_000 * (3 if "Layerwise" in env_id else 1)
    args = example.Args(env_id=env_id, penalty=1.0, total_timesteps=steps, learning_rate=3e-3, log_dir=str(tmp_path))
    accuracy, share, dense = example.main(args)
    assert dense > 0.97
    assert accuracy > 0.9
    assert share < 0.95
    assert list(tmp_path.glob("events.*"))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    if "CI" not in os.environ:  # there, the extra `notebook` is always installed
        pytest.importorskip("nbclient")
    code = (
        "import nbformat, sys; from nbclient import NotebookClient\n"
        "notebook = nbformat.read(sys.argv[1], 4)\n"
        "NotebookClient(notebook, timeout=280).execute()\n"
        "outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]\n"
        "print(sum('image/png' in output.get('data', {}) for output in outputs))"
    )
    command = [sys.executable, "-c", code, str(EXAMPLES / "masks.ipynb")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) >= 5


def test_gates_learn_to_agree_on_photographs_without_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parts of ``efficientnet_lite.py``, with a small network and made photographs."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    photos, example = importlib.import_module("make_photos"), importlib.import_module("efficientnet_lite")
    photos.make_photos(tmp_path / "photos", 20, sides=(40, 60))
    data = example.data_of(tmp_path / "photos", 24, 12, 16)
    assert data["train"].unlabelled
    assert data["train"].image_shape == (3, 16, 16)
    network = build("simple-cnn", num_classes=5, image_size=16)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    agreement, share = example.run(network, data, tmp_path / "out", steps=2, epochs=1)
    assert 0 <= agreement <= 1
    assert 0 < share < 1.1
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    model = DynamicCNN.load(tmp_path / "out/model.safetensors", network)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.masked.network.state_dict().items())
    assert "ONNX Runtime's logits differ by" in capsys.readouterr().out
