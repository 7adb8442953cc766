"""PPO in one file, in the style of CleanRL, over the batched environment of ``gymnasium.make_vec``.

It does not use Stable-Baselines3. All sub-environments are one batch, and ``action_masks`` returns the bits that count.

Run: python examples/cleanrl_ppo.py --env-id prunegym/LayerwiseChannelMask-v0 --total-timesteps 200000
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli
from torch.utils.tensorboard import SummaryWriter

import prunegym  # noqa: F401  registers the environments


@dataclasses.dataclass
class Args:
    """Settings; each is an option of the command line."""

    env_id: str = "prunegym/ChannelMask-v0"
    model: str = "digits"
    penalty: float = 0.2
    seed: int = 1
    total_timesteps: int = 100_000
    num_envs: int = 64
    num_steps: int = 16
    learning_rate: float = 1e-3
    num_minibatches: int = 4
    update_epochs: int = 4
    clip_coef: float = 0.2
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    log_dir: str = ""


class Agent(nn.Module):
    """An actor with a logit for each bit, and a critic."""

    def __init__(self, inputs: int, bits: int) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, bits))
        self.critic = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 1))
        nn.init.constant_(self.actor[2].bias, 2.0)  # keep channels with a probability of 0.88 at first
        nn.init.orthogonal_(self.actor[2].weight, 0.01)

    def act(self, observation: Tensor, counts: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions, log-probabilities of the bits that count, and values."""
        distribution = Bernoulli(logits=self.actor(observation))
        action = distribution.sample() if action is None else action
        return action, (distribution.log_prob(action) * counts).sum(-1), self.critic(observation)[:, 0]


def flat(observation: dict[str, np.ndarray]) -> Tensor:
    """Concatenate the parts of an observation: (num_envs, inputs) float32."""
    return torch.from_numpy(np.concatenate([observation[name] for name in sorted(observation)], axis=1))


def counting(envs: Any) -> Tensor:
    """Return which bits of the next action count: (bits,) float32."""
    return torch.from_numpy(envs.call("action_masks")[0].reshape(-1, 2)[:, 1]).float()


def evaluate(args: Args, agent: Agent) -> tuple[float, float, float]:
    """Return accuracy and MAC share of the most likely masks, and the dense accuracy, each test image once."""
    results = []
    for threshold in (0.0, -torch.inf):  # all channels on: every logit is above
        envs = gym.make_vec(args.env_id, num_envs=1, model=args.model, split="test")
        count = len(envs.unwrapped.task.dataset)
        envs = gym.make_vec(args.env_id, num_envs=count, model=args.model, split="test")
        observation, _ = envs.reset(options={"index": list(range(count))})
        infos: dict[str, Any] = {}
        while "final_info" not in infos:
            with torch.no_grad():
                action = agent.actor(flat(observation)) > threshold
            observation, _, _, _, infos = envs.step(action.numpy())
        results.append((infos["final_info"]["correct"].mean(), infos["final_info"]["mac_share"].mean()))
    return results[0][0], results[0][1], results[1][0]


def main(args: Args) -> tuple[float, float, float]:
    """Train, and return the results of :func:`evaluate`."""
    torch.manual_seed(args.seed)
    writer = SummaryWriter(args.log_dir or None)
    envs = gym.make_vec(
        args.env_id,
        num_envs=args.num_envs,
        model=args.model,
        reward="macs",
        accuracy="probability",
        penalty=args.penalty,
    )
    next_obs = flat(envs.reset(seed=args.seed)[0])
    bits = envs.single_action_space.n
    agent = Agent(next_obs.shape[1], bits)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)

    shape = (args.num_steps, args.num_envs)
    obs, actions = torch.zeros(*shape, next_obs.shape[1]), torch.zeros(*shape, bits)
    counts = torch.zeros(*shape, bits)
    logprobs, rewards, dones, values = (torch.zeros(shape) for _ in range(4))
    size, start = args.num_steps * args.num_envs, time.time()
    for iteration in range(max(1, args.total_timesteps // size)):
        returns, correct, shares = [], [], []
        for step in range(args.num_steps):
            obs[step], counts[step] = next_obs, counting(envs)
            with torch.no_grad():
                actions[step], logprobs[step], values[step] = agent.act(obs[step], counts[step])
            observation, reward, terminated, _, infos = envs.step(actions[step].numpy())
            # Same-step autoreset, and no episode is truncated: the next observation begins the next episode.
            next_obs, rewards[step] = flat(observation), torch.from_numpy(reward).float()
            dones[step] = torch.from_numpy(terminated)
            if "final_info" in infos:
                correct.append(infos["final_info"]["correct"].mean())
                shares.append(infos["final_info"]["mac_share"].mean())

        # An episode's return without discount is R. The rewards from a decision on are its return.
        with torch.no_grad():
            following = agent.critic(next_obs)[:, 0]
        for step in reversed(range(args.num_steps)):
            following = rewards[step] + (1 - dones[step]) * following
            returns.append(following)
        target = torch.stack(returns[::-1])
        advantages = target - values

        flat_data = [data.flatten(0, 1) for data in (obs, actions, counts, logprobs, advantages, target)]
        for _ in range(args.update_epochs):
            for rows in torch.randperm(size).split(size // args.num_minibatches):
                b_obs, b_actions, b_counts, b_logprobs, b_advantages, b_target = (data[rows] for data in flat_data)
                _, new_logprobs, new_values = agent.act(b_obs, b_counts, b_actions)
                ratio = (new_logprobs - b_logprobs).exp()
                b_advantages = (b_advantages - b_advantages.mean()) / (b_advantages.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                policy_loss = -torch.min(b_advantages * ratio, b_advantages * clipped).mean()
                value_loss = 0.5 * (new_values - b_target).square().mean()
                optimizer.zero_grad()
                (policy_loss + args.vf_coef * value_loss).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()

        steps = (iteration + 1) * size
        if correct:
            writer.add_scalar("charts/accuracy", np.mean(correct), steps)
            writer.add_scalar("charts/mac_share", np.mean(shares), steps)
        writer.add_scalar("losses/policy_loss", policy_loss.item(), steps)
        writer.add_scalar("losses/value_loss", value_loss.item(), steps)
        writer.add_scalar("charts/SPS", steps / (time.time() - start), steps)
    writer.close()
    accuracy, share, dense = evaluate(args, agent)
    print(f"test: accuracy {accuracy:.3f} at {share:.3f} of the MACs; {dense:.3f} with all channels on")
    return accuracy, share, dense


def parse() -> Args:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in dataclasses.fields(Args):
        value = field.default
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(value), default=value, help=" ")
    return Args(**vars(parser.parse_args()))


if __name__ == "__main__":
    main(parse())
