"""Every bash block of README and docs runs, line by line, with fewer images and steps; or says here why it does not."""

from __future__ import annotations

import importlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunegym import load_dataset, shipped_model
from tests import ROOT
from tests.commands.command_line import run
from tests.test_readme import PAGES, blocks

FIRST = ["getting-started.md", "your-cnn-and-data.md"]
"""Pages whose models other pages use."""
BASH = {page.name: blocks(page, "bash") for page in sorted(PAGES, key=lambda one: (one.name not in FIRST, one.name))}

NOT_RUN = {
    "make demo": "tests/commands/test_inspect.py runs `prunegym demo`",
    "make test": "it runs this test",
    "pip install -e '.[benchmark]'": "it installs packages that the tests have",
    "pip install -e '.[tune]'": "the same",
    "prunegym benchmark digits": "it takes minutes; tests/agents/benchmark runs a smaller suite",
    "prunegym report runs/digits-suite": "it needs that suite; tests/agents/benchmark writes a report",
    "prunegym validate runs/digits-suite": "tests/agents/benchmark/test_commands.py runs it on a smaller suite",
    "prunegym leaderboard runs/digits-suite": "the same",
    "prunegym merge ": "the same",
    "pip install -e .": ".ci/wheel_test installs PruneGym from a clone",
    "python examples/hard_cap.py": "it takes minutes; tests/test_examples.py runs its parts",
    "python examples/costly_errors.py 20": "it takes an hour; tests/test_examples.py runs it with two seeds",
    "PRUNEGYM_EMULATE_AVX512=1 python setup.py build_ext": "it would replace the kernel that other tests use",
    "python -m pytest tests/models/kernel": "`make test` runs these tests",
    "python results/render.py": "tests/test_results.py compares the tables with what it writes",
    "python results/pictures.py": "test_pictures_are_drawn below runs it into another folder",
    "pip install 'prunegym[onnx]' openvino nncf": "packages that only one benchmark needs",
    "python benchmarks/engines.py": "it needs these packages",
    "prunegym inspect torchvision:": "tests/commands/test_named_networks.py runs the journey with a stand-in",
    "prunegym train-cnn torchvision:": "as above",
    "prunegym prepare runs/net/": "as above",
    "prunegym train runs/net/": "as above",
    "prunegym evaluate runs/net/": "as above",
    "prunegym export runs/net/": "as above",
    "prunegym predict photos/test/ring/00000.jpg --model runs/net/": "as above",
    "python examples/efficientnet_lite.py": "it needs weights and photographs; tests/test_examples.py runs its parts",
    "python benchmarks/skipping_networks.py": "it needs torchvision and timm",
    "perf ": "a profiler of Linux, which is not installed by the project; the benchmark it watches needs packages too",
    "rl_zoo3 ": "a tool that is not installed here; docs/ecosystem.md names the version that was tried",
    "python examples/rl_zoo_batched.py": "it needs RL-Zoo",
}
"""Beginnings of lines, with the reason."""

RL = ["--episodes", "64", "--set", "n_envs=32"]
SMALLER = {
    "train-cnn": ["--epochs", "1"],
    "prepare": ["--epochs", "1"],
    "train": [*RL, "--set", "imitation.steps=1"],
    "finetune": [*RL, "--rounds", "1", "--set", "tune.epochs=1"],
    "compare": [*RL, "--seeds", "1", "--images", "30", "--train-images", ":100"],
    "evaluate": ["--images", "15"],
    "latency": ["--rounds", "1"],
    "profile": ["--rounds", "1"],
    "tune": ["--trials", "2", "--set", "n_envs=32", "--set", "n_episodes=64"],
}
"""Options that replace those of a command; the last one given counts."""


def save_images(folder: Path, images: np.ndarray, labels: list[int]) -> None:
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / f"class{label}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the commands expect: images, a photo, mycnn.py, the examples and a model for each seed."""
    rng = np.random.default_rng(0)
    for split, count in ("train", 60), ("test", 20):
        digits = load_dataset("digits", split)
        save_images(tmp_path / "data/pets" / split, digits.images[:count, 0].numpy(), digits.labels[:count].tolist())
        noise = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = [number % 10 for number in range(count)]
        save_images(tmp_path / "path/to/data/cifar10-jpeg" / split, noise, labels)
    Image.fromarray(noise[0]).save(tmp_path / "photo.jpg")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    importlib.import_module("make_photos").make_photos(tmp_path / "photos", 80, sides=(36, 60))
    (code,) = [one for one in blocks(ROOT / "docs/your-cnn-and-data.md", "python") if one.startswith("# mycnn.py")]
    (tmp_path / "mycnn.py").write_text(code)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for name in "prepared-0", "static-0":
        (tmp_path / "runs" / name).mkdir(parents=True)
        shipped_model("digits").save(tmp_path / "runs" / name / "prepared.safetensors")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in "mycnn", "mine":
        sys.modules.pop(name, None)


def smaller(command: str, options: list[str]) -> list[str]:
    more = SMALLER.get(command, [])
    if command == "prepare" and not {"--static", "--taylor"} & set(options):
        more = [*more, "--set", "imitation.steps=1"]
    return [command, *options, *more]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The policy")  # after so few steps policies may be static or miss their budget
def test_commands_run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {}
    for page, found in BASH.items():
        monkeypatch.delenv("PRUNEGYM_IMPORT", raising=False)
        monkeypatch.setenv("PRUNEGYM_DATA", "path/to/data")  # as getting-started.md leaves it
        for block in found:
            monkeypatch.chdir(workplace)
            for line in block.splitlines():
                if any(line.startswith(beginning) for beginning in NOT_RUN):
                    continue
                match shlex.split(line, comments=True):
                    case []:
                        pass
                    case ["export", *settings]:
                        for setting in settings:
                            monkeypatch.setenv(*setting.split("="))
                    case ["cd", folder]:
                        monkeypatch.chdir(workplace / folder)
                    case ["prunegym", command, *options]:
                        result = run(*smaller(command, options))
                        if result.exit_code != 0:
                            failed[page, line] = result.output, result.exception
                    case _:
                        failed[page, line] = "neither run nor named in NOT_RUN"
    assert failed == {}


def test_reasons_are_of_lines_that_exist() -> None:
    lines = [line for page in BASH.values() for block in page for line in block.splitlines()]
    assert [one for one in NOT_RUN if not any(line.startswith(one) for line in lines)] == []


def test_all_blocks_have_a_language_that_a_test_runs() -> None:
    """Python is run in tests/test_readme.py, which also loads YAML as a recipe.

    Blocks marked ``py`` need tools of others, which are not installed here; that page says which versions were tried.
    Blocks marked ``sh`` need several machines, and those marked ``text`` are what a command prints.
    """
    for page in PAGES:
        fences = [line for line in page.read_text().splitlines() if line.startswith("```")]
        tools = {"ecosystem.md": {"```py"}, "benchmarks.md": {"```sh", "```text"}}.get(page.name, set())
        assert set(fences[0::2]) <= {"```bash", "```python", "```yaml"} | tools, page.name
        assert set(fences[1::2]) <= {"```"}, page.name
        assert not any(line.lstrip().startswith("```") != line.startswith("```") for line in fences)
        assert "yaml" not in "".join(fences) or page.name in ("recipes.md", "benchmarks.md")


@pytest.mark.slow
def test_pictures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CIFAR-10 they show the shipped model."""
    monkeypatch.delenv("PRUNEGYM_DATA", raising=False)
    script = ROOT / "results/pictures.py"
    ran = subprocess.run([sys.executable, script, tmp_path], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for name in "commands.png", "masks.png", "macs-by-layer.png":
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200
