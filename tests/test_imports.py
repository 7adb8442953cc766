"""What imports load, and that they go one way: down."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOMS = ("prunegym", "prunegym.models", "prunegym.envs", "prunegym.agents")


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_there(room: str) -> None:
    module = importlib.import_module(room)
    assert len(module.__all__) > 20
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        # A name that a module has too would be that module once somebody imports it.
        assert getattr(module, name).__class__.__name__ != "module"
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def test_importing_prunegym_registers_and_loads_neither_torch_nor_sb3() -> None:
    run(
        "import sys, prunegym, gymnasium; assert 'prunegym/ChannelMask-v0' in gymnasium.registry; "
        "assert not {'stable_baselines3', 'torch'} & set(sys.modules)"
    )


@pytest.mark.parametrize("arguments", [["-h"], []])
def test_help_loads_neither_torch_nor_sb3(arguments: list[str]) -> None:
    run(
        f"import sys; sys.argv = ['prunegym', *{arguments}]\n"
        "from prunegym.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'stable_baselines3', 'torch'} & set(sys.modules)"
    )


@pytest.mark.slow
def test_making_an_environment_loads_no_sb3() -> None:
    run(
        "import sys, gymnasium, prunegym; gymnasium.make('prunegym/ChannelMask-v0'); "
        "gymnasium.make_vec('prunegym/ChannelMask-v0', 2); assert 'stable_baselines3' not in sys.modules"
    )


def test_models_need_neither_gymnasium_nor_sb3() -> None:
    run(
        "import sys, importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda name, *more: None if name == 'gymnasium' else find(name, *more); "
        "sys.modules['gymnasium'] = None; sys.modules['stable_baselines3'] = None; "
        "import prunegym.models as m; [getattr(m, name) for name in m.__all__]"
    )


FLOORS = """
errors registration
models.stopwatch models.precision user_code validation html
settings
models.tasks models.zoo models.kernel
models.data
models.masking
models.gating models.checks
models.storage
models.skipping
models.training models.dynamic_cnn models.timing models.named_networks
models.export models.conversion models.catalog
envs
agents.evaluation
agents.baselines agents.rl
agents.comparison
agents.benchmark
commands
cli
""".strip().split("\n")
"""Rooms from the ground up: each may import what is on floors below its own, and itself."""
HEIGHTS = {room: height for height, floor in enumerate(FLOORS) for room in floor.split()}
UPWARDS = {("models.dynamic_cnn", "models.export")}  # DynamicCNN.export_onnx, when it is called


def room_of(name: str) -> str:
    """Return the room that a module, or a name in it, is in; fails for one that has none."""
    (room,) = (room for room in HEIGHTS if f"{name}.".startswith(f"{room}."))
    return room


def imported(file: Path) -> list[str]:
    """Return what a module imports from prunegym, anywhere in it."""
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    assert not any(node.level for node in nodes), f"{file} has a relative import, which this test does not follow"
    names = [f"{node.module}.{alias.name}" for node in nodes for alias in node.names]
    return [name.removeprefix("prunegym.") for name in names if name.startswith("prunegym.")]


def test_imports_go_down() -> None:
    wrong, count = [], 0
    for package in ROOMS:
        folder = Path(str(importlib.import_module(package).__file__)).parent
        for file in folder.rglob("*.py"):
            path = file.relative_to(folder).with_suffix("").parts
            if path[-1] in ("__init__", "__main__"):
                continue
            count += 1
            own = room_of(".".join((*package.split(".")[1:], *path)))
            for name in imported(file):
                room = room_of(name)
                if room != own and (own, room) not in UPWARDS and HEIGHTS[room] >= HEIGHTS[own]:
                    wrong.append(f"{file} imports {name}, and {room} is not below {own}")
    assert count > 100
    assert not wrong, "\n".join(wrong)
