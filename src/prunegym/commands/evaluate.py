"""``evaluate``: every image of a split once, with controls, beside baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunegym.commands.options import (
    Data,
    DenseFile,
    Device,
    Execution,
    Images,
    JsonFlag,
    Split,
    Threads,
    TrainedModel,
    finite,
    grouped,
    settle,
)
from prunegym.commands.output import Table, emit, percent
from prunegym.errors import InvalidInputError

if TYPE_CHECKING:
    from prunegym.agents.evaluation.evaluator import Evaluation
    from prunegym.models.data.dataset import Dataset
    from prunegym.models.storage.model_file import Bundle
    from prunegym.models.timing.latency_table import LatencyTable

NO_DATA = Data()
COLUMNS = ["agent", "accuracy", "loss", "kept", "total MACs", "+-", "masks", "static", "shuffled", "reward"]
CAPTION = (
    "accuracy, kept channels and both controls in %. loss: points of accuracy below the dense network. total MACs: of "
    "masked CNN and policy, as a share of the dense CNN's; +-: standard deviation over images. static: one mask of the "
    "most often kept channels. shuffled: masks shuffled across images. reward: accuracy - penalty * total MACs."
)
TIME_CAPTION = " time: by the latency table, of masked CNN and own policy, as a share of that with all channels on."


@grouped
def evaluate(
    model: TrainedModel,
    agent: Annotated[
        str | None, typer.Option("--agent", help="module:name of an agent with a batched predict(observation).")
    ] = None,
    data: Data = NO_DATA,
    split: Split = "test",
    penalty: Annotated[
        float | None,
        typer.Option(
            "--penalty",
            min=0.0,
            callback=finite,
            help="lambda of the figure reward, by default 0.5; a policy for a range of lambdas observes it.",
        ),
    ] = None,
    images: Images = None,
    dense: DenseFile = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Add baselines that spend the same MACs.")] = False,
    latency: Annotated[
        Path | None, typer.Option("--latency", help="A table of prunegym latency; adds a column.")
    ] = None,
    execution: Execution = "masked",
    seed: Annotated[int, typer.Option(help="Seed of random baselines.", min=0)] = 0,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: JsonFlag = False,
) -> None:
    """Evaluate a model's own policy, or an agent of yours on it, on every image of a split."""
    from prunegym.agents.evaluation.user_agents import load_agent
    from prunegym.models.catalog import open_split, open_trained
    from prunegym.models.dynamic_cnn import DynamicCNN
    from prunegym.models.gating.gate_policy import check_penalty
    from prunegym.models.timing.latency_table import open_table

    settle(data.data_root, threads, device)
    stored = open_trained(model)
    images_of = open_split(stored.info, data.dataset, split, images)
    own = own_agent(stored) if agent is None else load_agent(agent)
    if isinstance(own, DynamicCNN):
        own = own.to(device).skip(execution)
    elif execution != "masked":
        raise InvalidInputError(
            f"--execution {execution} is for a model with its own policy; leave it out for --agent and for bare CNNs."
        )
    bounds = None if stored.policy is None or agent is not None else stored.policy.penalty_range
    if bounds is not None:
        check_penalty(bounds, penalty)
    penalty = penalty if penalty is not None else 0.5 if bounds is None else sum(bounds) / 2
    table = None if latency is None else open_table(latency, stored.masked)
    name = model if agent is None else agent
    train = open_split(stored.info, data.dataset, "train") if baselines or agent is not None else None
    results = evaluations(name, own, stored, images_of, penalty, dense, baselines, seed, device, table, train)
    first = next(iter(results.values()))
    document: dict[str, Any] = first.as_json()
    if baselines:
        document["baselines"] = {name: result.as_json() for name, result in list(results.items())[1:]}
    title = f"{images_of.name}/{split}, {len(images_of)} images, dense accuracy {percent(first.dense_accuracy)}"
    emit(document, as_json, evaluation_table(title, results), first.verdict, *first.notes)


def own_agent(stored: Bundle) -> Any:
    """Return a model's policy as an agent; a bare CNN keeps all channels."""
    import torch

    from prunegym.models.dynamic_cnn import DynamicCNN

    if stored.policy is None:
        return torch.ones(stored.masked.mask_size, dtype=torch.bool)
    return DynamicCNN(stored.masked, stored.policy, stored.info)


def evaluations(
    name: str,
    agent: Any,
    stored: Bundle,
    data: Dataset,
    penalty: float = 0.5,
    dense: Path | None = None,
    baselines: bool = False,
    seed: int = 0,
    device: str = "cpu",
    latency: LatencyTable | None = None,
    train: Dataset | None = None,
) -> dict[str, Evaluation]:
    """Evaluate an agent and, if wanted, every baseline at its MAC share, on one CNN; ``train`` is what these need."""
    from prunegym.agents.baselines.cheap import BASELINES, make_baseline
    from prunegym.agents.evaluation.evaluator import evaluate as evaluate_agent
    from prunegym.agents.evaluation.predictors import PredictorOptions
    from prunegym.models.catalog import open_split
    from prunegym.models.dynamic_cnn import DynamicCNN
    from prunegym.models.storage.model_file import read_model

    network = None if dense is None else read_model(dense).masked.network.to(device)
    masked, policy, info = stored.masked, stored.policy, stored.info
    owner = stored if policy is None else DynamicCNN(masked, policy, info)
    options: dict[str, Any] = {"penalty": penalty, "dense": network, "latency": latency}
    options["options"] = PredictorOptions(train=train)
    results = {name: evaluate_agent(agent, owner, data, device=device, **options)}
    if baselines:
        train = open_split(stored.info, data.name, "train") if train is None else train
        share = min(1.0, results[name].total_mac_share)
        model = dataclasses.replace(stored, data={"evaluated": data, "train": train}, seed=seed)
        for baseline in BASELINES:
            masks = make_baseline(baseline, model, share)
            results[masks.name] = evaluate_agent(masks, owner, data, **options)
    return results


def evaluation_table(title: str, results: Mapping[str, Evaluation]) -> Table:
    """Return a table with a line for each agent."""
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
