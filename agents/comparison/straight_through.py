"""The other side of a reward without a gradient: gates trained straight-through, shifted by their best offset."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch

from prunegym.agents.comparison.entries import Entry, Terms
from prunegym.agents.evaluation.masks import decide_on_the_way, penalised_accuracy
from prunegym.agents.rl.recipe import own_reward
from prunegym.errors import InvalidInputError
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.skipping.skipping_cnn import prefer_kernel
from prunegym.models.storage.model_file import Bundle
from prunegym.models.training.mac_target import check_shares
from prunegym.models.training.tuning import TuneConfig, tune

OFFSETS = tuple(0.25 * step for step in range(-12, 9))
"""Offsets that are tried on all logits."""


def straight_through_entry(targets: Sequence[float], gate_learning_rate: float = 5e-3) -> Entry:
    """Train the model's gates straight-through to each MAC target, and keep the best target and offset.

    For each target, the gates see as many images as the reference does in its whole training; the CNN is frozen. Of all
    targets and :data:`OFFSETS`, the pair with the highest mean reward on the validation images is used: the task's own
    reward, which needs no gradient for this choice, or else correct - penalty * total MAC share.

    Args:
        targets: Total MAC shares.
        gate_learning_rate: Learning rate of the gates.

    Raises:
        InvalidInputError: If a target is no share above 0, or there is none.
    """
    if not isinstance(targets, Sequence) or isinstance(targets, str) or not targets:
        raise InvalidInputError(f"targets is {targets!r}; a list of MAC shares is needed, such as [0.2, 0.4].")
    for target in targets:
        check_shares("A target of straight-through gates", target)

    def make(model: Bundle, terms: Terms) -> DynamicCNN:
        tried: list[tuple[float, GatePolicy]] = []
        for target in targets:
            policy = copy.deepcopy(_gates_of(model)).to(model.device)
            config = TuneConfig(
                target, terms.epochs, 64, train_cnn=False, gate_learning_rate=gate_learning_rate, anneal=0.2,
                augment="flip", seed=model.seed,
            )  # fmt: skip
            tune(model.masked, policy, model.data["train"], config)
            tried.append(best_offset(policy, judge_of(model, terms)))
            if terms.report is not None:
                terms.report(f"straight-through to {target:g}", {"reward": tried[-1][0]})
        return DynamicCNN(model.masked, max(tried, key=lambda pair: pair[0])[1], model.info)

    key = {"straight-through": list(targets), "gate_learning_rate": gate_learning_rate}
    return Entry("straight-through", make, key, seeded=True, as_long=True, check=_gates_of)


def _gates_of(model: Bundle) -> GatePolicy:
    if not isinstance(model.policy, GatePolicy):
        raise InvalidInputError(
            "The model has no gates, so there are none to train straight-through. Give a model of `prunegym prepare`, "
            "or the start.safetensors of a run of `prunegym train`."
        )
    return model.policy


Judge = Callable[[GatePolicy], float]


def judge_of(model: Bundle, terms: Terms) -> Judge:
    """Return a function that measures gates on the validation images, by the task's own reward if it has one."""
    validation, masked = model.data["validation"], model.masked
    measure = None if terms.reward is None else own_reward(terms.reward, masked, validation)

    @torch.inference_mode()
    def judge(policy: GatePolicy) -> float:
        run = prefer_kernel(masked, policy)
        masks, logits = decide_on_the_way(lambda images: run(images, None, None), validation, masked.device)
        if measure is not None:
            return measure(masks, logits, terms.penalty)
        shares = masked.cost.total_share(masks, policy.macs)
        return float(penalised_accuracy(validation.score(logits), shares, terms.penalty).mean())

    return judge


def best_offset(policy: GatePolicy, judge: Judge) -> tuple[float, GatePolicy]:
    """Return the highest reward over :data:`OFFSETS` on all logits, and a copy of the gates with that offset."""

    def shifted(offset: float) -> tuple[float, GatePolicy]:
        moved = copy.deepcopy(policy)
        moved.rescale_logits(offset=offset)
        return judge(moved), moved

    return max((shifted(offset) for offset in OFFSETS), key=lambda pair: pair[0])
