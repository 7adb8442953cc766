"""``evaluate``: run every image of a split once, with controls and baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegym.commands import options as opt
from prunegym.commands.output import Table, emit, percent
from prunegym.errors import InvalidInputError

if TYPE_CHECKING:
    from prunegym.agents.evaluation.evaluator import Evaluation
    from prunegym.models.data.dataset import Dataset
    from prunegym.models.storage.model_file import Bundle

COLUMNS = ["agent", "accuracy", "loss", "kept", "total MACs", "+-", "masks", "static", "shuffled", "reward"]
CAPTION = (
    "accuracy, kept channels and both controls in %. loss: points of accuracy below the dense network. total MACs: of "
    "masked CNN and policy, as a share of the dense CNN's; +-: standard deviation over images. static: one mask for "
    "all images, of the channels kept most often. shuffled: masks shuffled across images. reward: accuracy - penalty * "
    "total MACs, with the penalty of this evaluation (0.5 by default), not of training."
)
AGENT = "module:name of an agent with predict(observation), or a .zip of PPO or A2C (--trust-code)."
PENALTY = "lambda in the column reward; 0.5 by default. A policy for a range of lambdas also gets it as input."
TIME_CAPTION = (
    " time: of the masked CNN and its policy, estimated from the latency table, as a share of the time with all "
    "channels on."
)


@opt.grouped
def evaluate(
    model: opt.TrainedModel,
    data: opt.Data,
    network: opt.Network,
    machine: opt.AnyMachine,
    agent: Annotated[str | None, typer.Option(help=AGENT)] = None,
    trust_code: opt.TrustCode = False,
    split: opt.Split = "test",
    penalty: Annotated[float | None, typer.Option(min=0.0, callback=opt.finite, help=PENALTY)] = None,
    images: opt.Images = None,
    dense: opt.DenseFile = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Add baselines with the same MACs.")] = False,
    latency: Annotated[Path | None, typer.Option(help="A file of prunegym latency; adds a column time.")] = None,
    execution: opt.Execution = "masked",
    picture: Annotated[Path | None, typer.Option(help="Draw some images with their masks into this file.")] = None,
    seed: opt.Seed = 0,
) -> None:
    """Evaluate a model's own policy, or your agent on this model, on every image of a split."""
    import torch

    from prunegym.agents.evaluation.predictors import PredictorOptions, load_agent
    from prunegym.models.catalog import open_split
    from prunegym.models.dynamic_cnn import DynamicCNN
    from prunegym.models.gating.gate_policy import check_penalty
    from prunegym.models.storage.model_file import read_model
    from prunegym.models.timing.latency_table import open_table

    machine.settle(data)
    stored = network.open(model, data)
    if picture is not None and (stored.policy is None or stored.info.objective.kind != "classes"):
        raise InvalidInputError("--picture draws the masks of a model's own policy, for classes. Leave it out.")
    tested = open_split(stored.info, data.dataset, split, images)
    bounds = None
    own: Any = torch.ones(stored.masked.mask_size, dtype=torch.bool)  # a CNN without gates keeps all channels
    if agent is not None:
        own = load_agent(agent, trust_code)
    elif stored.policy is not None:
        own, bounds = DynamicCNN.of(stored, model), stored.policy.penalty_range
    if isinstance(own, DynamicCNN):
        own = own.to(machine.device).skip(execution)
    elif execution != "masked":
        raise InvalidInputError(
            f"--execution {execution} is for a model with its own policy; leave it out for --agent and for bare CNNs."
        )
    if bounds is not None:
        check_penalty(bounds, penalty)
    train = open_split(stored.info, data.dataset, "train") if baselines or agent is not None else None
    options = {
        "penalty": penalty if penalty is not None else 0.5 if bounds is None else sum(bounds) / 2,
        "dense": None if dense is None else read_model(dense).masked.network.to(machine.device),
        "latency": None if latency is None else open_table(latency, stored.masked),
        "options": PredictorOptions(train=train),
    }
    stored = dataclasses.replace(stored, data={"evaluated": tested}, seed=seed, device=machine.device)
    results = evaluations(model if agent is None else agent, own, stored, train if baselines else None, **options)
    if picture is not None:
        from prunegym.commands.demo import SHOWN, draw

        draw(DynamicCNN.of(stored, model), tested, torch.arange(min(SHOWN, len(tested))), picture)
    first, *others = results.values()
    document: dict[str, Any] = first.as_json()
    if baselines:
        document["baselines"] = dict(zip(list(results)[1:], (other.as_json() for other in others), strict=True))
    emit(document, machine.as_json, evaluation_table(tested, results), first.verdict, *first.notes)


def evaluations(
    name: str, agent: Any, model: Bundle, train: Dataset | None = None, **options: Any
) -> dict[str, Evaluation]:
    """Evaluate an agent on a model's ``evaluated`` images, and all baselines at its MAC share.

    Args:
        name: The agent's name.
        agent: The agent.
        model: The CNN.
        train: Training images for the baselines; None leaves these out.
        options: See :func:`prunegym.evaluate`.
    """
    from prunegym.agents.baselines.static_masks import BASELINES, make_baseline
    from prunegym.agents.evaluation.evaluator import evaluate as evaluate_agent

    tested = model.data["evaluated"]
    results = {name: evaluate_agent(agent, model, tested, device=model.device, **options)}
    if train is not None:
        share = min(1.0, results[name].total_mac_share)
        model = dataclasses.replace(model, data={"evaluated": tested, "train": train})
        for masks in (make_baseline(baseline, model, share) for baseline in BASELINES):
            results[masks.name] = evaluate_agent(masks, model, tested, **options)
    return results


def evaluation_table(data: Dataset, results: Mapping[str, Evaluation]) -> Table:
    """Return a table with a line for each agent that was evaluated on some images."""
    dense = percent(next(iter(results.values())).dense_accuracy)
    title = f"{data.name}/{data.split}, {len(data)} images, dense accuracy {dense}"
    rows = []
    for name, found in results.items():
        loss = f"{100 * (found.dense_accuracy - found.accuracy):.2f}"
        rows.append(
            [name, _points(found.accuracy), loss, f"{100 * found.kept_share:.1f}", f"{found.total_mac_share:.3f}",
             f"{found.mac_share_std:.3f}", f"{found.distinct_masks:,}", _points(found.static_accuracy),
             _points(found.shuffled_accuracy), f"{found.reward:.4f}"]
        )  # fmt: skip
        if found.latency_share is not None:
            rows[-1].append(f"{found.latency_share:.3f}")
    timed = any(found.latency_share is not None for found in results.values())
    return Table(title, [*COLUMNS, "time"] if timed else COLUMNS, rows, CAPTION + TIME_CAPTION * timed)


def _points(share: float) -> str:
    return f"{100 * share:.2f}"
