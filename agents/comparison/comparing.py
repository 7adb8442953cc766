"""Comparison of agents: trained and evaluated for each seed, with intervals, and with baselines at the same MACs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunegym.agents.comparison.entries import Entry, Terms, as_entry
from prunegym.agents.comparison.results import VERSION, Interval, Result, fingerprint, interval, slug
from prunegym.agents.evaluation.evaluator import JSON_KEYS, evaluate
from prunegym.agents.evaluation.predictors import PredictorOptions
from prunegym.errors import InvalidInputError
from prunegym.html import table
from prunegym.models.catalog import Model, resolve_model
from prunegym.models.checks import check_dense, check_masked
from prunegym.models.data.dataset import Dataset
from prunegym.models.data.dataset_registry import other_split
from prunegym.models.storage.model_file import Bundle
from prunegym.models.training.cnn_training import answered
from prunegym.validation import choice

DIFFERENCES = ("difference", "difference_over_seeds", "reward_difference", "reward_difference_over_seeds")


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """An agent's line in the table.

    Attributes:
        name: Name of the agent.
        figures: For each key of :data:`JSON_KEYS` the mean over seeds with its 95 % Student-t interval. An agent that
            does not depend on the seed has no interval.
        difference: Accuracy minus the reference's, paired by image: the mean over seeds for each image, then the mean
            over images with its interval. None for the reference.
        difference_over_seeds: The same with the interval over seeds. Each run is paired with the reference's run of the
            same seed.
        reward_difference: The reward, correct - penalty * total MAC share, minus the reference's, paired by image.
        reward_difference_over_seeds: The same with the interval over seeds.
        static_seeds: Number of runs in which the policy is static.
        verdict: Verdict of the first run.
        notes: Explanations that a reader of the figures needs.
        results: The result of each seed.
    """

    name: str
    figures: dict[str, Interval]
    difference: Interval | None
    difference_over_seeds: Interval | None
    reward_difference: Interval | None
    reward_difference_over_seeds: Interval | None
    static_seeds: int
    verdict: str
    notes: tuple[str, ...]
    results: dict[int, Result] = dataclasses.field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """Return the row as plain JSON."""
        row = {**vars(self), "seeds": {seed: result.figures for seed, result in self.results.items()}}
        del row["results"]
        plain: dict[str, Any] = json.loads(json.dumps(row, default=dataclasses.asdict))
        return plain


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """The table of a comparison.

    Attributes:
        dataset: Name and split.
        reference: Name of the row that others are compared with. Its MAC share is the budget of the baselines.
        seeds: The seeds.
        rows: The rows, in the order of the entries.
    """

    dataset: str
    reference: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        """Return each agent's accuracy and MAC share in a line."""
        shown = [
            f"{row.name} {row.figures['accuracy'].mean:.4f} at {row.figures['total_mac_share'].mean:.3f} of the MACs"
            for row in self.rows
        ]
        return f"Comparison({self.dataset}, {len(self.seeds)} seeds: {'; '.join(shown)})"

    def _repr_html_(self) -> str:
        keys = ("accuracy", "total_mac_share", "static_accuracy", "shuffled_accuracy", "reward")
        rows = [[row.name, *(row.figures[key].mean for key in keys), row.verdict] for row in self.rows]
        columns = ["agent", *(key.replace("_", " ") for key in keys), "verdict"]
        return table(columns, rows, f"{self.dataset}, means over {len(self.seeds)} seeds")

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as plain JSON."""
        return {**vars(self), "seeds": list(self.seeds), "rows": [row.as_json() for row in self.rows]}


def compare(
    entries: Sequence[Any],
    model: Model | Mapping[int, Model],
    dataset: Dataset,
    seeds: Sequence[int],
    *,
    out: Path | str,
    train: Dataset | None = None,
    validation: Dataset | None = None,
    reference: str | None = None,
    share: float | None = None,
    penalty: float = 0.5,
    dense: nn.Module | None = None,
    device: str = "cpu",
    progress: bool = True,
    report: Callable[[str, int, Result], None] | None = None,
) -> Comparison:
    """Train and evaluate several agents.

    All entries are checked before the first one is trained. Results are JSON files in ``out/results``, and are reused
    for the same entry, seed, model, data and options. Training runs are in ``out/runs``, and resume if they were
    interrupted.

    Args:
        entries: See :func:`prunegym.agents.comparison.entries.as_entry`.
        model: The CNN that recipes, baselines and agents with ``predict`` mask. If it has gates, recipes start from
            them. A mapping from seeds to models gives intervals over whole preparations.
        dataset: The split to evaluate on.
        seeds: Seeds of the training runs and of random baselines.
        out: Folder of the comparison.
        train: Training images. By default those of the data set with the same name.
        validation: Validation images; the same default.
        reference: Name of an entry; by default the first.
        share: The reference's MAC share, if it is a baseline for a given MAC share.
        penalty: lambda in the figure ``reward``.
        dense: The original network, see :func:`evaluate`.
        device: Torch device.
        progress: Whether trainings show a progress bar.
        report: Called after each result with the entry's name, the seed and the result.

    Returns:
        The table.

    Raises:
        InvalidInputError: If there are no entries or seeds, if two entries have the same name, if the reference needs a
            share, if a seed has no model, if a model or ``dense`` does not fit the images and classes, or if ``train``
            or ``validation`` is missing for your own data set.
        UnknownNameError: If ``reference`` is not an entry.
        PruneGymError: If an entry cannot be made, see its ``check``.
    """
    rows = [as_entry(entry) for entry in entries]
    first = check_entries(rows, seeds, reference, share)
    train = other_split(dataset, "train", "train=") if train is None else train
    validation = other_split(dataset, "validation", "validation=") if validation is None else validation
    data = {"evaluated": dataset, "train": train, "validation": validation}
    models = _models(model, seeds, data, dense, device)
    for entry in rows:
        for seed in seeds if isinstance(model, Mapping) or entry.seed_key is not None else seeds[:1]:
            entry.check(dataclasses.replace(models[seed], seed=seed))
    marks = {one: _marks(one) for one in dict.fromkeys(models.values())}
    epochs = max(5.0, first.passes(len(train)))
    options = {"version": VERSION, "penalty": penalty, "dense": fingerprint(dense)}
    found: dict[str, dict[int, Result]] = {entry.name: {} for entry in rows}
    for entry in sorted(rows, key=lambda entry: entry is not first):
        each = isinstance(model, Mapping) or entry.seeded or (entry.at_share and first.seeded)
        for seed in seeds if each else seeds[:1]:
            spent = share or 1.0 if entry is first else _of(found[first.name], seed).figures["total_mac_share"]
            terms = Terms(min(1.0, spent), epochs, penalty, Path(out), progress)
            found[entry.name][seed] = _result(
                entry, dataclasses.replace(models[seed], seed=seed), terms, options | marks[models[seed]], dense
            )
            if report is not None:
                report(entry.name, seed, found[entry.name][seed])
    table = tuple(_row(entry, found[entry.name], found[first.name], penalty) for entry in rows)
    return Comparison(f"{dataset.name}/{dataset.split}", first.name, tuple(seeds), table)


def check_entries(
    entries: Sequence[Entry], seeds: Sequence[int], reference: str | None = None, share: float | None = None
) -> Entry:
    """Check the names of entries, and return the one that others are compared with.

    Raises:
        InvalidInputError: If there are no entries or seeds, if two entries have the same name, if different recipes
            would train in the same folder, or if the reference is for a given MAC share and ``share`` is None.
        UnknownNameError: If ``reference`` is not an entry.
    """
    if not entries or not seeds:
        raise InvalidInputError(
            f"There are {len(entries)} entries and {len(seeds)} seeds; at least one of each is needed."
        )
    names = [entry.name for entry in entries]
    files = [slug(name) for name in names]
    twice = sorted({name for name, file in zip(names, files, strict=True) if files.count(file) > 1})
    if twice:
        raise InvalidInputError(
            f"Several entries are called {', '.join(map(repr, twice))}. Give each a different name, as LABEL=ENTRY."
        )
    trained: dict[str, Entry] = {}
    for entry in entries:
        other = entry if entry.run_name is None else trained.setdefault(slug(entry.run_name), entry)
        if other.key != entry.key:
            raise InvalidInputError(
                f"The recipes of {other.name!r} and {entry.name!r} are both called {entry.run_name!r}, so their runs "
                "would share a folder. Rename one of the files."
            )
    first = entries[0 if reference is None else names.index(choice("reference", reference, names))]
    if first.at_share and share is None and first.key != {"baseline": "keep-all"}:
        raise InvalidInputError(
            f"{first.name!r} gets the MAC share of the first entry, but is the first entry. Put a recipe or an agent "
            "before it, or give a share: --target-macs 0.5, or share=0.5 in Python."
        )
    return first


def _models(
    model: Model | Mapping[int, Model],
    seeds: Sequence[int],
    data: Mapping[str, Dataset],
    dense: nn.Module | None,
    device: str,
) -> dict[int, Bundle]:
    """Return the model of each seed on the device, with images of its size and type."""

    def ready(given: Model) -> Bundle:
        one = resolve_model(given, lambda _info: data)
        one.masked.to(device)
        if one.policy is not None:
            one.policy.to(device)
        for part in one.data.values():
            check_masked(one.masked, part)
        if dense is not None:
            check_dense(dense, one.masked, one.data["evaluated"])
        judge = one.masked if dense is None else dense
        parts = {name: answered(part, judge) for name, part in one.data.items()}
        return dataclasses.replace(one, data=parts, device=device)

    if not isinstance(model, Mapping):
        return dict.fromkeys(seeds, ready(model))
    missing = [seed for seed in seeds if seed not in model]
    if missing:
        raise InvalidInputError(
            f"There is no model for seed {', '.join(map(str, missing))}, only for {', '.join(map(str, model))}. "
            "Give one for each seed, or one model for all."
        )
    return {seed: ready(model[seed]) for seed in seeds}


def _marks(model: Bundle) -> dict[str, Any]:
    """Return hashes of a model and its data: a stored result is reused only if they are the same."""
    data = {"dataset" if part == "evaluated" else part: fingerprint(images) for part, images in model.data.items()}
    return {"model": fingerprint(model.masked), "policy": fingerprint(model.policy), **data}


def _of(results: dict[int, Result], seed: int) -> Result:
    """Return the result of a seed; an entry that does not depend on the seed has only one."""
    return results.get(seed) or next(iter(results.values()))


def _result(entry: Entry, model: Bundle, terms: Terms, options: Mapping[str, Any], dense: nn.Module | None) -> Result:
    data = model.data
    path = terms.root / "results" / slug(data["evaluated"].split) / f"{slug(entry.name)}-seed{model.seed}.json"
    key = entry.key if entry.seed_key is None else entry.seed_key(model.seed)
    configuration = {
        "entry": key,
        "seed": model.seed,
        "share": round(terms.share, 6) if entry.at_share else None,
        "epochs": terms.epochs if entry.as_long else None,
        **options,
    }
    stored = None if key is None else Result.load(path, configuration)
    if stored is not None:
        return stored
    evaluation = evaluate(
        entry.make(model, terms), model, data["evaluated"], penalty=terms.penalty, dense=dense, device=model.device,
        options=PredictorOptions(train=data["train"]),
    )  # fmt: skip
    result = Result.of(evaluation)
    result.save(path, configuration)
    return result


def _row(entry: Entry, results: dict[int, Result], reference: dict[int, Result], penalty: float) -> Row:
    figures = {key: interval([result.figures[key] for result in results.values()]) for key in JSON_KEYS}
    differences: dict[str, Interval | None] = dict.fromkeys(DIFFERENCES)
    if results is not reference:
        pairs = [(_of(results, seed), _of(reference, seed)) for seed in sorted({*results, *reference})]
        # At lambda 0 the reward is the accuracy.
        for name, price in (("difference", 0.0), ("reward_difference", penalty)):
            # Paired differences (pairs, images): their means over pairs give the interval over images, and the reverse.
            gaps = torch.stack([own.rewards(price) - other.rewards(price) for own, other in pairs])
            differences[name] = interval(gaps.mean(0).tolist())
            differences[f"{name}_over_seeds"] = interval(gaps.mean(1).tolist())
    notes = tuple(dict.fromkeys(note for result in results.values() for note in result.notes))
    static = sum(result.is_static for result in results.values())
    verdict = next(iter(results.values())).verdict
    return Row(entry.name, figures, **differences, static_seeds=static, verdict=verdict, notes=notes, results=results)
