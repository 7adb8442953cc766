"""The other side of a reward without a gradient: gates trained straight-through, shifted by their best offset."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunegym.agents.comparison.entries import Entry, Terms
from prunegym.agents.comparison.results import fingerprint
from prunegym.agents.rl.lagrangian import OFFSETS, best_of_offsets
from prunegym.agents.rl.recipe import own_reward
from prunegym.errors import InvalidInputError
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.storage.model_file import Bundle
from prunegym.models.training.mac_target import check_shares
from prunegym.models.training.tuning import TuneConfig, tune
from prunegym.validation import finite


def straight_through_entry(
    targets: Sequence[float], gate_learning_rate: float = 5e-3, epochs: float | None = None
) -> Entry:
    """Train the model's gates straight-through to each MAC target, and keep the best target and offset.

    The CNN is frozen. Of all targets and offsets (:data:`prunegym.agents.rl.lagrangian.OFFSETS`), the pair with the
    highest mean reward on the validation images is used: the task's own reward, which needs no gradient for this
    choice, or else correct - penalty * total MAC share. Neither the training nor the masks at an offset depend on the
    reward, so tasks of a suite with the same model share both.

    Args:
        targets: Total MAC shares.
        gate_learning_rate: Learning rate of the gates.
        epochs: Passes over the training images for each target; by default as many as the reference takes in its whole
            training.

    Raises:
        InvalidInputError: If a target is no share above 0, or there is none, or ``epochs`` is not above 0.
    """
    if not isinstance(targets, Sequence) or isinstance(targets, str) or not targets:
        raise InvalidInputError(f"targets is {targets!r}; a list of MAC shares is needed, such as [0.2, 0.4].")
    for target in targets:
        check_shares("A target of straight-through gates", target)
    if epochs is not None:
        finite("epochs of straight-through gates", epochs, above=0)

    def make(model: Bundle, terms: Terms) -> DynamicCNN:
        passes, validation = epochs or terms.epochs, model.data["validation"]
        measure = None if terms.reward is None else own_reward(terms.reward, model.masked, validation)
        tried: list[tuple[float, DynamicCNN]] = []
        for target in targets:
            config = TuneConfig(
                target, passes, 64, train_cnn=False, gate_learning_rate=gate_learning_rate, anneal=0.2, augment="flip",
                seed=model.seed,
            )  # fmt: skip
            stored = _stored(model, config, terms.shared)
            trained = _trained(model, config, stored)
            offsets = None if stored is None else stored.with_stem(f"{stored.stem}-offsets")
            tried.append(best_of_offsets(trained, validation, terms.penalty, measure, offsets))
            if terms.report is not None:
                terms.report(f"straight-through to {target:g}", {"reward": tried[-1][0]})
        return max(tried, key=lambda pair: pair[0])[1]

    key: dict[str, Any] = {"straight-through": list(targets), "gate_learning_rate": gate_learning_rate}
    key |= {} if epochs is None else {"epochs": epochs}
    return Entry("straight-through", make, key, seeded=True, as_long=epochs is None, check=_gates_of)


def _stored(model: Bundle, config: TuneConfig, shared: Path | None) -> Path | None:
    """Return the file for the gates of one target, named by everything that they and their offsets depend on."""
    if shared is None:
        return None
    things = (model.masked, model.policy, model.data["train"], model.data["validation"])
    marks = [*(fingerprint(thing) for thing in things), dataclasses.asdict(config), OFFSETS]
    return shared / f"straight-through-{hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:24]}.safetensors"


def _trained(model: Bundle, config: TuneConfig, stored: Path | None) -> DynamicCNN:
    """Return the gates of one target; those of another task, if it trained the same."""
    gates = _gates_of(model)
    if stored is not None and stored.exists():
        return DynamicCNN.load(stored, copy.deepcopy(model.masked.network), model.device)
    policy = copy.deepcopy(gates).to(model.device)
    tune(model.masked, policy, model.data["train"], config)
    trained = DynamicCNN(model.masked, policy, model.info)
    if stored is not None:
        stored.parent.mkdir(parents=True, exist_ok=True)
        trained.save(stored)
    return trained


def _gates_of(model: Bundle) -> GatePolicy:
    if not isinstance(model.policy, GatePolicy):
        raise InvalidInputError(
            "The model has no gates, so there are none to train straight-through. Give a model of `prunegym prepare`, "
            "or the start.safetensors of a run of `prunegym train`."
        )
    return model.policy
