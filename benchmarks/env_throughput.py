"""Speed of the environments compared with the CNN alone: images per second, all measured in one process.

    python benchmarks/env_throughput.py [--model resnet20] [--num-envs 256] [--rounds 15] [--execution masked]

Compared are a bare batched masked forward pass (images already normalised; in parts as small as the environments', or
in one), MaskVecEnv in one step and layer by layer, and SB3's DummyVecEnv over scalar environments. Images are noise: no
number depends on what they show. With one thread (OMP_NUM_THREADS=1) the processor's time is counted, which other work
on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from prunegym.envs import MaskVecEnv
from prunegym.models import MaskedCNN, build, from_arrays
from prunegym.models.skipping.stepwise import CHUNK


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--dummy-envs", type=int, default=16, help="sub-environments of DummyVecEnv")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--execution", default="auto", help="of the environments: auto, kernel or masked")
    options = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1024, 3, 32, 32), dtype=torch.uint8, generator=generator)
    dataset = from_arrays((images, torch.arange(1024) % 10), (images[:64], torch.arange(64) % 10))
    masked = MaskedCNN(build(options.model), torch.zeros(1, 3, 32, 32))
    rng = np.random.default_rng(0)
    ids = {"one step": "prunegym/ChannelMask-v0", "layer by layer": "prunegym/LayerwiseChannelMask-v0"}
    sides = {
        "bare forward": bare(masked, dataset["train"].batch(torch.arange(options.num_envs)), CHUNK),
        "bare forward, in one": bare(masked, dataset["train"].batch(torch.arange(options.num_envs)), options.num_envs),
        **{
            name: episode(env_id, options.num_envs, masked, dataset, options.execution, rng)
            for name, env_id in ids.items()
        },
        "DummyVecEnv, one step": dummy(options.dummy_envs, masked, dataset, rng),
    }
    counts = dict.fromkeys(sides, options.num_envs) | {"DummyVecEnv, one step": options.dummy_envs}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds + 1):  # the first round warms up
        for name, run in sides.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    rate = {name: counts[name] / statistics.median(times[1:]) for name, times in seconds.items()}
    # Ratios within a round are steadier than a ratio of medians where other work shares the machine.
    ratio = {
        name: statistics.median(
            (counts[name] / own) / (options.num_envs / base)
            for own, base in zip(times[1:], seconds["bare forward"][1:], strict=True)
        )
        for name, times in seconds.items()
    }
    report = {
        "model": options.model,
        "num_envs": options.num_envs,
        "threads": torch.get_num_threads(),
        "images_per_second": {name: round(value, 1) for name, value in rate.items()},
        "relative_to_bare_forward": {name: round(value, 3) for name, value in ratio.items()},
        "layerwise_in_passes": round(1 / ratio["layer by layer"], 3),
    }
    print(json.dumps(report, indent=2))


def bare(masked: MaskedCNN, images: torch.Tensor, part: int) -> Callable[[], object]:
    mask = (torch.rand(len(images), masked.mask_size, generator=torch.Generator().manual_seed(0)) < 0.7).float()

    def run() -> object:
        with torch.inference_mode():
            return [masked(some, bits) for some, bits in zip(images.split(part), mask.split(part), strict=True)]

    return run


def episode(
    env_id: str, count: int, masked: MaskedCNN, dataset: object, execution: str, rng: np.random.Generator
) -> Callable[[], object]:
    env = MaskVecEnv(env_id, count, seed=0, model=masked, dataset=dataset, execution=execution)
    env.reset()
    actions = (rng.random((count, *env.action_space.shape)) < 0.7).astype(np.float32)

    def run() -> object:
        for _ in env.simulator.decisions:
            result = env.step(actions)
        return result

    return run


def dummy(count: int, masked: MaskedCNN, dataset: object, rng: np.random.Generator) -> Callable[[], object]:
    env = DummyVecEnv([lambda: gym.make("prunegym/ChannelMask-v0", model=masked, dataset=dataset)] * count)
    env.reset()
    actions = (rng.random((count, *env.action_space.shape)) < 0.7).astype(np.float32)
    return lambda: env.step(actions)


if __name__ == "__main__":
    main()
