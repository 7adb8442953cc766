"""Recipes: how an agent is trained."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from prunegym.agents.rl.lagrangian import Budget
from prunegym.errors import InvalidInputError, UnknownNameError
from prunegym.models.training.imitation import ImitationConfig
from prunegym.models.training.tuning import TuneConfig
from prunegym.user_code import described

CLASSES: dict[str, type[OnPolicyAlgorithm]] = {"a2c": A2C, "ppo": PPO}
ADVANTAGE_BASELINES = ("greedy",)
COUNTS = (
    "n_envs", "group", "n_episodes", "episodes_per_rollout", "n_minibatches", "eval_every", "eval_images",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Every setting of a training run. Episodes are images, whatever the number of steps an episode has."""

    name: str
    env: str = "prunegym/LayerwiseChannelMask-v0"
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Reward, accuracy term, penalty and the like, as ``gym.make`` takes them."""
    gate_policy: dict[str, Any] = dataclasses.field(default_factory=dict)
    """``hidden``, ``grid`` and ``feature_size`` of a fresh policy; a prepared model brings its own."""
    imitation: ImitationConfig | None = None
    """First stage, skipped if the model has a policy."""
    refine: TuneConfig | None = None
    """Second stage: straight-through refinement of the gates, the CNN frozen."""
    target_macs: float | Literal["best"] | None = None
    """After these stages, logits are shifted so that the masks cost this total MAC share: reinforcement learning begins
    there, and ends where lambda leads it. ``best``: to where correct - penalty * total MAC share is highest on the
    validation split (reward ``macs``; the middle of a range of penalties)."""
    budget: Budget | None = None
    """Instead: reinforcement learning begins and ends at a total MAC share, and adapts lambda to it."""
    algo: str = "ppo"
    n_envs: int = 512
    group: int = 1
    """Neighbouring environments with the same image; above 1 each is judged against the mean of the others."""
    baseline: str | None = None
    """What each of a group is judged against: by default the mean of the others; ``greedy`` makes the first one act
    deterministically and judges the others against it (self-critical)."""
    n_episodes: int = 76800
    """Episodes (images) of reinforcement learning."""
    episodes_per_rollout: int = 1
    """Episodes of each environment between two updates."""
    n_minibatches: int = 2
    """Parts into which a rollout is cut for the updates (PPO)."""
    sharpen: float = 1.0
    """Factor on the logits at the start of reinforcement learning."""
    eval_every: int = 10
    """Updates between two evaluations on the validation split."""
    eval_images: int = 5000
    """Images of the validation split that are evaluated, at most."""
    hyperparameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What else the algorithm takes. ``learning_rate: lin_6.0e-4`` falls linearly to 0, as in RL-Zoo."""

    def __post_init__(self) -> None:
        """Check what Stable-Baselines3 would complain about late or not at all."""
        if self.algo not in CLASSES:
            raise UnknownNameError("algorithm that acts in MultiBinary spaces", self.algo, CLASSES)
        self._check_numbers()
        if self.group < 1 or self.n_envs % self.group:
            raise InvalidInputError(
                f"Recipe {self.name!r}: group is {self.group}; n_envs ({self.n_envs}) must be a multiple of it."
            )
        if self.baseline is not None and (self.baseline not in ADVANTAGE_BASELINES or self.group < 2):
            raise InvalidInputError(
                f"Recipe {self.name!r}: baseline is {self.baseline!r} and group {self.group}; "
                f"{', '.join(ADVANTAGE_BASELINES)} with a group of at least 2 is allowed, or no baseline for the mean "
                "of the others."
            )
        if self.budget is not None and self.target_macs is not None:
            raise InvalidInputError(
                f"Recipe {self.name!r}: target_macs says where reinforcement learning begins, budget where it begins "
                "and ends. Give one of the two."
            )
        if self.target_macs == "best" and self.env_kwargs.get("reward") != "macs":
            raise InvalidInputError(
                f"Recipe {self.name!r}: target_macs is 'best', where correct - penalty * MAC share is highest, but "
                f"the reward is {self.env_kwargs.get('reward', 'l0')!r}. Set env_kwargs' reward to 'macs', or give "
                "target_macs as a share above 0 and at most 1."
            )
        if self.target_macs not in (None, "best") and not _is_share(self.target_macs):
            raise InvalidInputError(
                f"Recipe {self.name!r}: target_macs is {self.target_macs!r}; a total MAC share above 0 and at "
                "most 1 is allowed, or 'best'."
            )
        self._check_lambdas()
        if 0 < self.n_episodes < self.n_envs * self.episodes_per_rollout:
            raise InvalidInputError(
                f"Recipe {self.name!r}: n_episodes is {self.n_episodes}; one rollout alone has "
                f"{self.n_envs * self.episodes_per_rollout}. Give more episodes or fewer environments."
            )

    def _check_numbers(self) -> None:
        for name in COUNTS:
            value, least = getattr(self, name), 0 if name == "n_episodes" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidInputError(
                    f"Recipe {self.name!r}: {name} is {value!r}; a whole number of at least {least} is needed."
                )
        if not isinstance(self.sharpen, float | int) or not 0 < self.sharpen < math.inf:
            raise InvalidInputError(f"Recipe {self.name!r}: sharpen is {self.sharpen!r}; a number above 0 is needed.")

    def _check_lambdas(self) -> None:
        """Check before hours of imitation what would be refused after them."""
        ranged = isinstance(self.env_kwargs.get("penalty"), tuple | list)
        if ranged and self.budget is not None:
            raise InvalidInputError(
                f"Recipe {self.name!r}: there is a budget, but penalty is a range: for all lambdas there is no one "
                "budget. Give penalty as a number, or leave out the budget."
            )
        shares = (
            ("imitation", "mac_share", None if self.imitation is None else self.imitation.mac_share),
            ("refine", "target_macs", None if self.refine is None else self.refine.target_macs),
        )
        for stage, setting, share in shares:
            if not ranged and not isinstance(share, float | int | None):
                raise InvalidInputError(
                    f"Recipe {self.name!r}: {setting} of {stage} is {share}, for a range of lambdas, but penalty is "
                    "one number. Give one share, or the penalty as a range."
                )

    @property
    def middle_penalty(self) -> float:
        """lambda, or the middle of the range from which it is drawn."""
        penalty = self.env_kwargs.get("penalty")
        if isinstance(penalty, tuple | list):
            return float(sum(penalty) / 2)
        return 0.5 if penalty is None else float(penalty)

    def passes(self, images: int) -> float:
        """Return how often all stages together look at each of so many training images."""
        imitated = 0 if self.imitation is None else self.imitation.steps * self.imitation.batch_size
        return (imitated + self.n_episodes) / images + (0.0 if self.refine is None else self.refine.epochs)

    def as_dict(self) -> dict[str, Any]:
        """Return all settings as plain JSON; functions by name and source, files with a hash of what is in them.

        So an edited function, and a table that was measured anew, is another setting.
        """
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
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
    """Return stages, and other arguments of environments (tables, paths, tensors), for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value.tolist() if isinstance(value, Tensor) else str(value)


def _is_share(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 < value <= 1


def linear_start(text: str) -> float:
    """Return where a learning rate of the form ``lin_6.0e-4`` begins.

    Raises:
        InvalidInputError: If the text has another form.
    """
    try:
        return float(text.removeprefix("lin_"))
    except ValueError:
        raise InvalidInputError(
            f"learning_rate is {text!r}; a number is needed, or lin_ and a number, which falls linearly to 0."
        ) from None
