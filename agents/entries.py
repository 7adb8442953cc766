"""What can stand in a comparison: recipes, agents, baselines and rivals."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunegym.agents.baselines import BASELINES, Setting, make_baseline
from prunegym.agents.deciding import Agent
from prunegym.agents.learners import best_of_k, decore, gates_by_gradient
from prunegym.agents.loading import agent_name, as_predictor, load_agent
from prunegym.agents.recipe import Recipe, load_recipe
from prunegym.agents.results import fingerprint, slug
from prunegym.agents.rivals import gates_at_mac_share, greedy_static, learned_static, pruned_and_tuned, taylor_static
from prunegym.agents.training import train_agent
from prunegym.models.data import Dataset
from prunegym.models.dynamic import CNNInfo, DynamicCNN
from prunegym.models.errors import UnknownNameError
from prunegym.models.gate_policy import GatePolicy, StaticPolicy
from prunegym.models.masked import MaskedCNN


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Where and for what an entry is made.

    Attributes:
        masked: The CNN.
        info: Its description.
        policy: The gates that came with it, if any.
        dataset: The split that is evaluated.
        train: Training images.
        validation: Validation images.
        seed: Of this run.
        share: Total MAC share of the reference, which baselines and rivals get to spend; 1 for the reference itself.
        epochs: Passes over the training images that the reference took, at least 5, which learned rivals take too.
        root: Folder of the comparison.
        device: Torch device.
    """

    masked: MaskedCNN
    info: CNNInfo
    policy: GatePolicy | StaticPolicy | None
    dataset: Dataset
    train: Dataset
    validation: Dataset
    seed: int
    share: float
    epochs: float
    root: Path
    device: str

    def folder(self, name: str) -> Path:
        """Return the folder of an entry's training run with this seed."""
        return self.root / "runs" / f"{slug(name)}-seed{self.seed}"


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A row of a comparison.

    Attributes:
        name: As in the table.
        make: Makes or trains the agent.
        key: What makes it, as JSON, by which a stored result is known again; None: results are never reused.
        seeded: Whether another seed gives another agent.
        at_share: Whether it is made for the reference's MAC share.
        images: How many images its training looks at, if it is known.
    """

    name: str
    make: Callable[[Run], Agent]
    key: dict[str, Any] | None
    seeded: bool = False
    at_share: bool = False
    images: int = 0


def recipe_entry(recipe: Recipe | str | Path) -> Entry:
    """Train by a recipe, once for each seed; an interrupted training goes on."""
    settings = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)

    def make(run: Run) -> DynamicCNN:
        folder = run.folder(settings.name)
        return train_agent(
            copy.deepcopy(run.masked), run.info, run.train, run.validation, settings, folder,
            policy=copy.deepcopy(run.policy), seed=run.seed, resume=(folder / "run.json").exists(), device=run.device,
        )  # fmt: skip

    return Entry(settings.name, make, {"recipe": settings.as_dict()}, seeded=True, images=settings.images)


def before_rl_entry(recipe: Entry, same_share: bool = False) -> Entry:
    """Evaluate the gates from which a recipe's reinforcement learning started.

    Args:
        recipe: An entry of :func:`recipe_entry` that stands earlier in the comparison.
        same_share: Shift their logits so that they spend as much as the reference.
    """

    def make(run: Run) -> DynamicCNN:
        start = DynamicCNN.load(
            run.folder(recipe.name) / "start.safetensors", copy.deepcopy(run.masked.network), run.device
        )
        return gates_at_mac_share(start, run.dataset, run.share) if same_share else start

    name = "gates before RL" + (", same MACs" if same_share else "")
    return Entry(name, make, {"before": recipe.key, "same share": same_share}, seeded=True, at_share=same_share)


def agent_entry(agent: Any, name: str | None = None) -> Entry:
    """Evaluate an agent as it is: a dynamic CNN, a Stable-Baselines3 model, an object or function with ``predict``."""
    mark = fingerprint(agent)
    key = None if mark is None else {"agent": mark}
    if mark is None:
        agent = as_predictor(agent, name)
    return Entry(name or agent_name(agent), lambda _run: agent, key)


def baseline_entry(name: str) -> Entry:
    """Make a baseline of :data:`BASELINES` at the reference's MAC share."""
    if name not in BASELINES:
        raise UnknownNameError("baseline", name, BASELINES)

    def make(run: Run) -> Agent:
        return make_baseline(name, Setting(run.masked, run.dataset, run.train, run.share, run.seed))

    return Entry(name, make, {"baseline": name}, seeded=name == "random", at_share=True)


def rival_entry(name: str, epochs: float | None = None) -> Entry:
    """Make a rival at the reference's MAC share.

    Args:
        name: ``greedy-static``, ``taylor-static``, ``learned-static`` (frozen track); ``tuned-taylor``,
            ``tuned-learned`` (prepared track: the model of the comparison must then be the original network);
            ``decore``, ``gates``, ``sparse-gates`` (other learners, the CNN frozen); ``best-of-16`` (an oracle).
        epochs: Passes over the training images, of those that train; by default as many as the reference took.
    """
    if name not in RIVALS:
        raise UnknownNameError("rival", name, RIVALS)
    trained = name not in ("greedy-static", "taylor-static")
    key = {"rival": name, "epochs": epochs if trained else None}

    def make(run: Run) -> Agent:
        return RIVALS[name](run, run.epochs if epochs is None else epochs)

    return Entry(name, make, key, seeded=trained, at_share=True)


def _tuned(learned: bool) -> Callable[[Run, float], Agent]:
    def make(run: Run, epochs: float) -> DynamicCNN:
        return pruned_and_tuned(run.masked, run.info, run.train, run.share, epochs, learned=learned, seed=run.seed)

    return make


def _gates(sparse: bool) -> Callable[[Run, float], Agent]:
    def make(run: Run, epochs: float) -> DynamicCNN:
        return gates_by_gradient(run.masked, run.info, run.train, run.share, epochs, sparse=sparse, seed=run.seed)

    return make


RIVALS: dict[str, Callable[[Run, float], Agent]] = {
    "greedy-static": lambda run, _epochs: greedy_static(run.masked, run.train, run.share),
    "taylor-static": lambda run, _epochs: taylor_static(run.masked, run.train, run.share),
    "learned-static": lambda run, epochs: learned_static(
        run.masked, run.train, run.share, epochs=epochs, seed=run.seed
    ),
    "decore": lambda run, epochs: decore(run.masked, run.train, run.share, epochs=epochs, seed=run.seed),
    "gates": _gates(sparse=False),
    "sparse-gates": _gates(sparse=True),
    "best-of-16": lambda run, _epochs: best_of_k(run.masked, run.policy, run.dataset, run.share, k=16, seed=run.seed),
    "tuned-taylor": _tuned(learned=False),
    "tuned-learned": _tuned(learned=True),
}
"""Rivals by name, each from the run and a number of epochs."""


def as_entry(thing: Any) -> Entry:
    """Return an entry for whatever names or is one.

    Args:
        thing: An entry; a baseline's or rival's name; ``"module:name"`` of an agent; a model file; a recipe, its name
            or its file; else an agent.
    """
    if isinstance(thing, Entry):
        return thing
    if isinstance(thing, Recipe):
        return recipe_entry(thing)
    if not isinstance(thing, str | Path):
        return agent_entry(thing)
    text = str(thing)
    if text in BASELINES:
        return baseline_entry(text)
    if text in RIVALS:
        return rival_entry(text)
    if text.endswith(".safetensors"):
        return agent_entry(DynamicCNN.load(text), Path(text).stem)
    return agent_entry(load_agent(text), text) if ":" in text else recipe_entry(thing)
