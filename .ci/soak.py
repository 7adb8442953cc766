"""A soak: runs that are killed at random moments and resumed, and memory over long use.

Usage: python .ci/soak.py [--part NAME]... [--seed N] [--rounds N]

All parts together take about 20 minutes of one idle core, each part two to four. On a busy machine run them one by one:
``--part train-cnn`` (or another training command) kills and resumes that command, ``--part steps`` (or ``predictions``,
``updates``) measures memory, and ``kill`` and ``memory`` are all parts of their kind.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

PRUNEGYM = [sys.executable, "-W", "ignore", "-m", "prunegym"]
GROWTH = 30_000
"""Kilobytes that resident memory may grow by after the first tenth."""
COMMANDS: dict[str, list[str]] = {
    "train-cnn": ["simple-cnn", "--dataset", "digits", "--epochs", "30"],
    "prepare": ["digits", "--epochs", "4"],
    "train": ["digits", "--recipe", "digits", "--episodes", "10240", "--set", "n_envs=128", "--set", "eval_every=4"],
    "finetune": ["digits", "--rounds", "2", "--episodes", "2560", "--set", "n_envs=128", "--set", "eval_every=2"],
    "compare": ["digits", "l1", "learned-static", "--model", "digits", "--seeds", "2", "--episodes", "5120"],
}
MADE_OF_TIME = {"command", "machine", "seconds", "versions"}
"""What differs between two runs that are the same."""


def command(name: str, out: Path, *more: str) -> list[str]:
    """Return a training command that writes into a folder."""
    return [*PRUNEGYM, name, *COMMANDS[name], "--out", str(out), "--quiet", *more]


def results(out: Path) -> dict[str, Any]:
    """Return all weights and figures that a run has left."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.suffix == ".safetensors":
            tensors = safetensors.torch.load_file(path)
            found[name] = {key: (tuple(value.shape), value.numpy().tobytes()) for key, value in tensors.items()}
        elif path.suffix == ".json":
            found[name] = without_time(json.loads(path.read_text().replace(str(out), "OUT")))
    return found


def without_time(value: Any) -> Any:
    """Return JSON without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without_time(one) for key, one in value.items() if key not in MADE_OF_TIME}
    return [without_time(one) for one in value] if isinstance(value, list) else value


def killed_and_resumed(name: str, draw: random.Random, top: Path) -> str:
    """Kill a command three times, resume it, and say how it differs from a run that was left alone; empty if not."""
    whole, part = top / "whole", top / "part"
    started = time.perf_counter()
    first = subprocess.run(command(name, whole), check=False, capture_output=True, text=True)
    if first.returncode:
        return f"the run that is left alone ended with {first.returncode}: {first.stderr[-500:]}"
    seconds = time.perf_counter() - started
    for _ in range(3):
        process = subprocess.Popen(
            command(name, part, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            _, said = process.communicate(timeout=draw.uniform(0.1, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            continue
        if process.returncode:
            return f"exit {process.returncode}: {said[-500:]}"
    last = subprocess.run(command(name, part, "--resume"), check=False, capture_output=True, text=True)
    if last.returncode:
        return f"the last resume ended with {last.returncode}: {last.stderr[-500:]}"
    expected, found = results(whole), results(part)
    other = [file for file in {**expected, **found} if expected.get(file) != found.get(file)]
    partial = [str(path) for path in part.rglob("*partial*")]
    return "" if not other and not partial else f"other content in {other}; partial files: {partial}"


def resident() -> int:
    """Return this process's resident memory in kB."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def environment_steps() -> Callable[[], object]:
    """Return a function that takes 200 steps of the environments, in all 20,000."""
    import gymnasium as gym

    import prunegym  # noqa: F401  (registers the environments)

    env = gym.make("prunegym/LayerwiseChannelMask-v0", reward="macs")
    env.action_space.seed(0)
    env.reset(seed=0)

    def steps() -> None:
        for _ in range(200):
            if env.step(env.action_space.sample())[2]:
                env.reset()

    return steps


def predictions() -> Callable[[], object]:
    """Return a function that predicts batches of changing sizes, with the fastest execution, and loads the model."""
    from prunegym import load_dataset, shipped_model

    model, images = shipped_model().skip(), load_dataset("digits", "test").images

    def predict() -> None:
        for size in (1, 2, 7, 32, 1, 100):
            model.predict(images[:size])
        shipped_model().predict(images[:3])

    return predict


def updates() -> Callable[[], object]:
    """Return a function that makes five updates of PPO, in all 500."""
    from stable_baselines3 import PPO

    from prunegym import MaskPolicy, MaskVecEnv, new_gate_policy

    env = MaskVecEnv("prunegym/LayerwiseChannelMask-v0", 64, reward="macs", seed=0)
    agent = PPO(MaskPolicy, env, n_steps=3, batch_size=96, policy_kwargs={"gate_policy": new_gate_policy(env)}, seed=0)
    return lambda: agent.learn(5 * 64 * 3, reset_num_timesteps=False)


USES = {"steps": environment_steps, "predictions": predictions, "updates": updates}


def growth(name: str) -> int:
    """Return by how many kB resident memory grows after the first tenth of a hundred repeats."""
    torch.set_num_threads(1)
    use, before = USES[name](), 0
    for repeat in range(100):
        if repeat == 10:
            before = resident()
        use()
    return resident() - before


def main() -> int:
    """Run all, or the named parts, and return 1 if something failed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    kinds = {"kill": tuple(COMMANDS), "memory": tuple(USES)}
    arguments.add_argument("--part", action="append", choices=(*kinds, *COMMANDS, *USES))
    arguments.add_argument("--measure", choices=USES, help="Print by how many kB memory grows; each part runs this.")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--rounds", type=int, default=1, help="How often each command is killed and resumed.")
    given = arguments.parse_args()
    if given.measure:
        print(growth(given.measure))
        return 0
    parts = {part for one in given.part or kinds for part in kinds.get(one, (one,))}
    failed = 0
    draw = random.Random(given.seed)
    for name in (command for command in COMMANDS if command in parts):
        for _ in range(given.rounds):
            with tempfile.TemporaryDirectory() as top:
                wrong = killed_and_resumed(name, draw, Path(top))
            failed += bool(wrong)
            print(f"{'FAILS' if wrong else 'holds'}  {name}, killed three times and resumed {wrong}", flush=True)
    for name in (use for use in USES if use in parts):
        # Each use in a separate process, so that only this use changes its memory.
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--measure", name],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        grown = int(done.stdout.split()[-1])
        failed += grown > GROWTH
        print(f"{'FAILS' if grown > GROWTH else 'holds'}  {name}: memory grew by {grown} kB", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
