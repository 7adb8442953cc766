"""Policies for Stable-Baselines3: gates as actor with a critic, and a features extractor for small images."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import BernoulliDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from prunegym.envs.task import Task
from prunegym.errors import InvalidInputError
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.precision import new_tensors_in
from prunegym.validation import whole_number

ALWAYS_KEPT = 40.0
"""Logit of the action bits past a gate's width. Their log-probability and entropy are 0 in float32."""
SMALLEST_MAP = 4
"""Maps of :class:`SmallImageExtractor` are halved until they are at most this many pixels wide and high."""


class MaskPolicy(ActorCriticPolicy):
    """A :class:`~prunegym.models.GatePolicy` as actor, with a small critic for each decision.

    It works with both environments of PruneGym and with PPO and A2C of Stable-Baselines3.

    Args:
        observation_space: Dict with ``features``. Layer by layer it also has ``gate`` and ``cost``, and for a range of
            lambdas ``penalty``.
        action_space: MultiBinary, as wide as the widest decision.
        lr_schedule: Learning rate over the remaining progress.
        gate_policy: The actor to start from; it is copied. :func:`new_gate_policy` makes one for an environment.
        sharpen: Factor on the actor's logits at the start. Above 1, samples are closer to the most likely mask.
        value_hidden: Width of the critics' hidden layers.
        **kwargs: Further arguments of ``ActorCriticPolicy``.

    Raises:
        InvalidInputError: If no gate policy is given, or it does not fit the spaces.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        gate_policy: GatePolicy | None = None,
        sharpen: float = 1.0,
        value_hidden: int = 64,
        **kwargs: Any,
    ) -> None:
        if not isinstance(gate_policy, GatePolicy):
            raise InvalidInputError(
                f"gate_policy is a {type(gate_policy).__name__}, but MaskPolicy needs a GatePolicy to start from: "
                "policy_kwargs={'gate_policy': prunegym.new_gate_policy(env)}, or a model's: model.policy."
            )
        _check_spaces(observation_space, action_space, gate_policy)
        # In a dict, because a module cannot have modules as attributes before its constructor has run.
        self._arguments: dict[str, Any] = {"gate_policy": gate_policy, "sharpen": sharpen, "value_hidden": value_hidden}
        kwargs["ortho_init"] = False  # it would overwrite the weights of the actor
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    @new_tensors_in()
    def _build(self, lr_schedule: Schedule) -> None:
        self.actor: GatePolicy = copy.deepcopy(self._arguments["gate_policy"])
        self.actor.rescale_logits(self._arguments["sharpen"])
        assert isinstance(self.observation_space, spaces.Dict)
        extra = sum(key in self.observation_space.spaces for key in ("cost", "penalty"))
        hidden = self._arguments["value_hidden"]
        self.critics = nn.ModuleList(
            nn.Sequential(nn.Linear(size + extra, hidden), nn.ReLU(), nn.Linear(hidden, 1))
            for size in self.actor.features.sizes
        )
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self._arguments

    def gate_policy(self) -> GatePolicy:
        """Return a copy of the actor, as a plain torch module."""
        return copy.deepcopy(self.actor)

    def _decisions(self, obs: dict[str, Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield each decision in a batch, its rows, and the features that it is made from."""
        count = len(obs["features"])
        gates = obs["gate"].argmax(1) if "gate" in obs else torch.zeros(count, dtype=torch.int64, device=self.device)
        for decision in torch.unique(gates).tolist():
            rows = (gates == decision).nonzero()[:, 0]
            yield decision, rows, obs["features"][rows, : self.actor.features.sizes[decision]]

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """Return the distribution of the mask bits (batch, action width)."""
        assert isinstance(obs, dict)
        assert isinstance(self.action_dist, BernoulliDistribution)
        assert self.action_space.shape is not None
        shape = len(obs["features"]), self.action_space.shape[0]
        logits = torch.full(shape, ALWAYS_KEPT, dtype=torch.float32, device=self.device)
        for decision, rows, features in self._decisions(obs):
            penalty = obs["penalty"][rows, 0] if "penalty" in obs else None
            values = self.actor.logits(decision, features, penalty)
            logits[rows, : values.shape[1]] = values
        return self.action_dist.proba_distribution(logits)

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Return the critics' values, (batch, 1)."""
        assert isinstance(obs, dict)
        values = torch.zeros(len(obs["features"]), 1, dtype=torch.float32, device=self.device)
        extra = [obs[key] for key in ("cost", "penalty") if key in obs]
        for decision, rows, features in self._decisions(obs):
            values[rows] = self.critics[decision](torch.cat([features, *(part[rows] for part in extra)], dim=1))
        return values

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions (batch, width), values (batch, 1) and log-probabilities (batch,)."""
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return values (batch, 1), log-probabilities (batch,) and entropies (batch,) of given actions."""
        distribution = self.get_distribution(obs)
        return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy()


def new_gate_policy(env: VecEnv | gym.Env[Any, Any], hidden: int = 64, bias: float = 2.0, seed: int = 0) -> GatePolicy:
    """Make a gate policy with random weights for an environment of PruneGym, to start :class:`MaskPolicy` from.

    Args:
        env: Scalar or batched, wrapped or not.
        hidden: Width of the hidden layers.
        bias: Initial bias of the logits; +2 keeps a channel with a probability of 0.88.
        seed: Seed of the initial weights. The global random state does not change.

    Raises:
        InvalidInputError: If it is not an environment of PruneGym.

    Example:
        >>> from prunegym import MaskVecEnv
        >>> env = MaskVecEnv("prunegym/ChannelMask-v0", num_envs=4)
        >>> [head[-1].out_features for head in new_gate_policy(env).heads] == [env.action_space.n]
        True
    """
    try:
        task = env.get_attr("task")[0] if isinstance(env, VecEnv) else env.unwrapped.task  # type: ignore[attr-defined]
    except AttributeError:
        task = None
    if not isinstance(task, Task):
        raise InvalidInputError(f"{env} is not a PruneGym environment. Make one with gym.make or MaskVecEnv.")
    whole_number("seed", seed, 0)
    bounds = task.penalty if isinstance(task.penalty, tuple) else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GatePolicy(task.features, hidden, bias, bounds).to(task.device)


def _check_spaces(observation: spaces.Space[Any], action: spaces.Space[Any], policy: GatePolicy) -> None:
    if not isinstance(observation, spaces.Dict) or "features" not in observation.spaces:
        raise InvalidInputError(
            f"MaskPolicy reads a Dict observation with 'features'; this environment has {observation}."
        )
    if not isinstance(action, spaces.MultiBinary):
        raise InvalidInputError(f"MaskPolicy acts in a MultiBinary space; this environment has {action}.")
    (size,) = observation["features"].shape or (0,)
    widest = max(decision.width for decision in policy.decisions)
    if max(policy.features.sizes) != size or action.shape[0] != widest:
        raise InvalidInputError(
            f"The gate policy has up to {max(policy.features.sizes)} features and {widest} bits, but the environment "
            f"has {size} and {action.n}. Make both for the same model, and both layer by layer or both in one step."
        )
    if (policy.penalty_range is not None) != ("penalty" in observation.spaces):
        raise InvalidInputError(
            f"The gate policy's penalty_range is {policy.penalty_range}, but the environment's penalty is "
            f"{'a range' if 'penalty' in observation.spaces else 'one number'}. Both must be the same."
        )


class SmallImageExtractor(BaseFeaturesExtractor):
    """A small CNN for the images of a ``Dict`` observation; vectors are passed on unchanged.

    SB3's image extractor needs images of at least 36 pixels a side; this one also takes smaller ones.

    It has 3x3 convolutions with 32 channels, which halve maps until they are 4x4 or smaller, and a linear layer.

    Args:
        observation_space: A ``Dict``, for example of an environment with ``observation="image"``.
        cnn_output_dim: Number of features of each image.

    Raises:
        InvalidInputError: If there is no image, or ``cnn_output_dim`` is not a whole number above 0.

    Example:
        >>> from stable_baselines3 import PPO
        >>> from prunegym import MaskVecEnv
        >>> env = MaskVecEnv("prunegym/ChannelMask-v0", 4, observation="image")
        >>> policy_kwargs = {"features_extractor_class": SmallImageExtractor}
        >>> PPO("MultiInputPolicy", env, n_steps=8, batch_size=32, policy_kwargs=policy_kwargs).learn(32).num_timesteps
        32
    """

    def __init__(self, observation_space: spaces.Dict, cnn_output_dim: int = 128) -> None:
        whole_number("cnn_output_dim", cnn_output_dim)
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
        images = {name: space for name, space in parts.items() if is_image_space(space)}
        if not images:
            raise InvalidInputError(
                f"SmallImageExtractor reads a Dict observation with an image, not {observation_space}. Make the "
                "environment with observation='image'."
            )
        vectors = sum(get_flattened_obs_dim(space) for name, space in parts.items() if name not in images)
        super().__init__(observation_space, vectors + cnn_output_dim * len(images))
        self.cnns = nn.ModuleDict({name: _cnn(space.shape or (), cnn_output_dim) for name, space in images.items()})

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Return (batch, features_dim) float32: the vectors, and the CNNs' features of the images in [0, 1]."""
        return torch.cat(
            [self.cnns[name](part) if name in self.cnns else part.flatten(1) for name, part in observations.items()], 1
        )


def _cnn(shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    channels, *sides = shape
    layers: list[nn.Module] = []
    for _ in range(max(1, math.ceil(math.log2(max(sides) / SMALLEST_MAP)))):
        layers += [nn.Conv2d(channels, 32, 3, stride=2, padding=1), nn.ReLU()]
        channels, sides = 32, [(side + 1) // 2 for side in sides]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * math.prod(sides), outputs), nn.ReLU())
