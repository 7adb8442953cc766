"""Recipes: the settings of a training run, and the mean reward by which a run chooses its best agent."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from prunegym.agents.rl.lagrangian import Budget
from prunegym.envs.rewards.outcome import Outcome
from prunegym.envs.rewards.reward import resolve_reward
from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset import Dataset
from prunegym.models.masking.compensation import COMPENSATIONS
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.training.cnn_training import dense_logits
from prunegym.models.training.preparation import ImitationConfig, PrepareConfig, seeded
from prunegym.models.training.tuning import TuneConfig
from prunegym.settings import make_config
from prunegym.user_code import described
from prunegym.validation import choice, finite, share, whole_number, yes_or_no

CLASSES: dict[str, type[OnPolicyAlgorithm]] = {"a2c": A2C, "ppo": PPO}
SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf")
"""Hyperparameters that may fall linearly to 0, as ``lin_6.0e-4``."""
HYPERPARAMETER_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "gamma": functools.partial(share, zero=True),
    "gae_lambda": functools.partial(share, zero=True),
    "n_epochs": whole_number,
    "ent_coef": functools.partial(finite, low=0),
    "vf_coef": functools.partial(finite, low=0),
    "max_grad_norm": functools.partial(finite, above=0),
    "target_kl": functools.partial(finite, above=0),
    "rms_prop_eps": functools.partial(finite, above=0),
    "normalize_advantage": yes_or_no,
    "use_rms_prop": yes_or_no,
}
"""Checks of values that Stable-Baselines3 refuses late, or accepts although training then fails."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All settings of a training run. An episode is one image, whatever its number of steps."""

    name: str
    env: str = "prunegym/LayerwiseChannelMask-v0"
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Reward, accuracy term, penalty and other arguments of ``gym.make``."""
    gate_policy: dict[str, Any] = dataclasses.field(default_factory=dict)
    """``hidden``, ``grid`` and ``feature_size`` of a new policy. Ignored if the model has a policy."""
    imitation: ImitationConfig | None = None
    """First stage, skipped if the model has a policy."""
    refine: TuneConfig | None = None
    """Second stage: straight-through refinement of the gates, the CNN frozen."""
    compensation: Literal["zero", "constant"] = "zero"
    """What layers that read a masked channel get: zero, or a ``constant``, which refinement learns with the gates. A
    model that has constants keeps them."""
    target_macs: float | Literal["best"] | None = None
    """Total MAC share of the gates when reinforcement learning starts: one offset is added to all logits after the
    stages above. ``best`` uses the offset with the highest reward on the validation split, for gates of the model too:
    correct - penalty * total MAC share for the reward ``macs``, else the recipe's own (a range of penalties counts as
    its middle)."""
    budget: Budget | None = None
    """Instead of ``target_macs``: reinforcement learning starts and ends at this total MAC share, and adapts lambda."""
    algo: str = "ppo"
    n_envs: int = 512
    group: int = 1
    """Number of neighbouring environments with the same image. Above 1, the mean reward of the others in the group is
    subtracted from each one's reward."""
    baseline: str | None = None
    """What is subtracted from the rewards of a group. By default it is the mean of the others. With ``greedy``, the
    first environment acts deterministically and its reward is subtracted from the others' (self-critical)."""
    n_episodes: int = 76800
    """Episodes (images) of reinforcement learning."""
    episodes_per_rollout: int = 1
    """Episodes of each environment between two updates."""
    n_minibatches: int = 2
    """Number of minibatches of a rollout (PPO)."""
    sharpen: float = 1.0
    """Factor on the logits at the start of reinforcement learning."""
    eval_every: int = 10
    """Updates between two evaluations on the validation split."""
    eval_images: int = 5000
    """Largest number of validation images in each evaluation."""
    hyperparameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Other arguments of the algorithm. ``learning_rate: lin_6.0e-4`` falls linearly to 0, as in RL-Zoo."""
    callbacks: list[Any] = dataclasses.field(default_factory=list)
    """Callbacks of Stable-Baselines3, as ``module:Class`` or ``{module:Class: {argument: value}}``."""
    loggers: list[Any] = dataclasses.field(default_factory=list)
    """Loggers in addition to TensorBoard: ``csv``, ``json``, ``log``, ``stdout``, or a ``KVWriter``, written as in
    ``callbacks``."""

    def __post_init__(self) -> None:
        """Check values that Stable-Baselines3 would refuse late or not at all."""
        choice("algorithm that acts in MultiBinary spaces", self.algo, CLASSES)
        for field in dataclasses.fields(self):
            if field.type == "int":
                least = 0 if field.name == "n_episodes" else 1
                whole_number(self._named(field.name), getattr(self, field.name), least)
        choice(self._named("compensation"), self.compensation, COMPENSATIONS)
        finite(self._named("sharpen"), self.sharpen, above=0)
        if self.target_macs not in (None, "best"):
            share(self._named("target_macs"), self.target_macs, hint="Give a total MAC share, or 'best'.")
        for setting in ("callbacks", "loggers"):
            if not isinstance(getattr(self, setting), list | tuple):
                raise InvalidInputError(f"{self._named(setting)} is {getattr(self, setting)!r}; a list is needed.")
        make_config(PrepareConfig, self.gate_policy, f"{self._named('gate_policy')}.")
        conflict = self._conflict()
        if conflict is not None:
            raise InvalidInputError(f"Recipe {self.name!r}: {conflict}")
        for setting, value in self.hyperparameters.items():
            if value is None and setting in ("target_kl", "clip_range_vf"):
                continue
            if setting in SCHEDULES and not callable(value):
                start = linear_start(value, self._named(setting)) if isinstance(value, str) else value
                finite(self._named(setting), start, above=0, hint="The prefix lin_ makes a value fall linearly to 0.")
            elif setting in HYPERPARAMETER_CHECKS:
                HYPERPARAMETER_CHECKS[setting](self._named(setting), value)

    def _named(self, setting: str) -> str:
        return f"Recipe {self.name!r}: {setting}"

    def _conflict(self) -> str | None:
        """Return a message about the first settings that exclude each other; None if there are none."""
        rollout = self.n_envs * self.episodes_per_rollout
        if 0 < self.n_episodes < rollout:
            return f"n_episodes is {self.n_episodes}; one rollout alone has {rollout}. Give more, or lower n_envs."
        if self.n_envs % self.group:
            return f"group is {self.group}; n_envs ({self.n_envs}) must be a multiple of it."
        if self.baseline is not None and (self.baseline != "greedy" or self.group < 2):
            return (
                f"baseline is {self.baseline!r} and group {self.group}. Give greedy with a group of at least 2; or "
                "none, for the mean of the others."
            )
        if self.compensation == "constant" and self.refine is None:
            return "compensation is 'constant', but no refine stage learns constants. Add refine, or use zero."
        if self.budget is not None and self.target_macs is not None:
            return "target_macs is where training starts, budget where it starts and ends. Give one of the two."
        if isinstance(self.env_kwargs.get("penalty"), tuple | list):
            message = "a budget adapts one penalty, but penalty is a range. Give one number, or leave out the budget."
            return None if self.budget is None else message
        for stage, setting in (("imitation", "mac_share"), ("refine", "target_macs")):
            given = getattr(getattr(self, stage), setting, None)  # also None for a stage that is left out
            if not isinstance(given, float | int | None):
                return (
                    f"{setting} of {stage} is {given}, for a range of lambdas, but penalty is one number. Give one "
                    "share, or the penalty as a range."
                )
        return None

    @property
    def middle_penalty(self) -> float:
        """lambda, or the middle of its range."""
        penalty = self.env_kwargs.get("penalty")
        if isinstance(penalty, tuple | list):
            return float(sum(penalty) / 2)
        return 0.5 if penalty is None else float(penalty)

    def passes(self, images: int) -> float:
        """Return how often all stages together use each training image, given the number of images."""
        # passes = (images of imitation + episodes) / images + epochs of refinement; an episode is one image.
        imitated = 0 if self.imitation is None else self.imitation.steps * self.imitation.batch_size
        return (imitated + self.n_episodes) / images + (0.0 if self.refine is None else self.refine.epochs)

    def as_dict(self) -> dict[str, Any]:
        """Return all settings as plain JSON.

        Functions are named with a hash of their source, and latency tables with a hash of their content, so that a
        change of either is a change of the settings.
        """
        recipe = seeded(self, 0)  # runs of earlier versions have the number
        settings = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
        # Left out at their defaults, so that runs and results of earlier versions are still found.
        settings = {key: value for key, value in settings.items() if value or key not in ("callbacks", "loggers")}
        if self.compensation == "zero":
            del settings["compensation"]
        for name in ("reward", "accuracy"):
            function = self.env_kwargs.get(name)
            if callable(function) or (isinstance(function, str) and ":" in function):
                settings["env_kwargs"] = settings["env_kwargs"] | {name: described(function)}
        table = self.env_kwargs.get("latency_table")
        if isinstance(table, str | Path) and Path(table).is_file():
            content = hashlib.sha256(Path(table).read_bytes()).hexdigest()[:16]
            settings["env_kwargs"] = settings["env_kwargs"] | {"latency_table": f"{table} {content}"}
        plain: dict[str, Any] = json.loads(json.dumps(settings, default=_plain))
        return plain


def _plain(value: object) -> Any:
    """Return stages and other arguments of environments (tables, paths, tensors) for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)


def linear_start(text: str, setting: str = "learning_rate") -> float:
    """Return the first value of a setting of the form ``lin_6.0e-4``.

    Raises:
        InvalidInputError: If the text has another form.
    """
    try:
        return float(text.removeprefix("lin_"))
    except ValueError:
        raise InvalidInputError(
            f"{setting} is {text!r}; a number is needed, or lin_ and a number for one that falls linearly to 0."
        ) from None


OwnReward = Callable[[Tensor, Tensor, float], float]
"""Returns the mean reward over a split, from masks (images, mask_size) bool, the CNN's outputs under them
(images, classes) float32, and lambda. A recipe with one fixed lambda is measured at this lambda."""


def own_reward(recipe: Recipe, masked: MaskedCNN, dataset: Dataset) -> OwnReward | None:
    """Return a function that measures a recipe's own reward.

    Args:
        recipe: The recipe. Its ``env_kwargs`` have the reward.
        masked: The CNN.
        dataset: The images.

    Returns:
        None for the reward ``macs`` with ``correct`` or ``probability``. Policies are then compared by
        correct - penalty * total MAC share, which includes the policy's MACs.
    """
    kwargs = recipe.env_kwargs
    reward, accuracy = kwargs.get("reward", "l0"), kwargs.get("accuracy", "correct")
    if reward == "macs" and accuracy in ("correct", "probability"):
        return None
    resolved = resolve_reward(reward, accuracy, masked, kwargs.get("latency_table")).on(dataset)
    own_penalty = resolved.default_penalty if kwargs.get("penalty") is None else kwargs["penalty"]
    dense = functools.cache(lambda: dense_logits(masked, dataset))

    def measured(masks: Tensor, logits: Tensor, penalty: float) -> float:
        device, mask = masked.device, masks.float().to(masked.device)
        price = float(own_penalty) if isinstance(own_penalty, float | int) else penalty
        outcome = Outcome(
            logits=logits.to(device),
            labels=dataset.labels.to(device),
            indices=torch.arange(len(mask), device=device),
            mask=mask,
            kept=mask.double().sum(1),
            mac_share=masked.spent_share(mask),
            penalty=torch.full((len(mask),), price, dtype=torch.float64, device=device),
            masked=masked,
            dataset=dataset,
            dense=lambda: dense().to(device, copy=True),
        )
        return float(resolved(outcome).mean())

    return measured
