"""RL-Zoo with all sub-environments as one batch, which is several times faster than its ``DummyVecEnv``.

Run: python examples/rl_zoo_batched.py --algo ppo --env prunegym/ChannelMask-v0 -conf examples/rl_zoo.yml

It takes the options of ``rl_zoo3 train``. RL-Zoo's ``monitor.csv`` stays empty, so plot evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gymnasium as gym
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.train import train

from prunegym import MaskVecEnv


class ZooMaskVecEnv(MaskVecEnv):
    """The batched environment, made from RL-Zoo's functions that make one environment each."""

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]]) -> None:
        env = env_fns[0]()
        super().__init__(env.spec.id, len(env_fns), **env.spec.kwargs)
        env.close()


if __name__ == "__main__":
    ExperimentManager.default_vec_env_cls = ZooMaskVecEnv
    train()
