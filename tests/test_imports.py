"""What importing loads: people pay for what they use, and the CNN side needs nothing of reinforcement learning."""

from __future__ import annotations

import importlib
import subprocess
import sys

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


@pytest.mark.parametrize("call", ["make('prunegym/ChannelMask-v0')", "make_vec('prunegym/ChannelMask-v0', 2)"])
def test_making_an_environment_loads_no_sb3(call: str) -> None:
    run(f"import sys, gymnasium, prunegym; gymnasium.{call}; assert 'stable_baselines3' not in sys.modules")


def test_models_need_neither_gymnasium_nor_sb3() -> None:
    run(
        "import sys, importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda name, *more: None if name == 'gymnasium' else find(name, *more); "
        "sys.modules['gymnasium'] = None; sys.modules['stable_baselines3'] = None; "
        "import prunegym.models as m; [getattr(m, name) for name in m.__all__]"
    )
