"""Agents side by side: trained and evaluated for each seed, with intervals and baselines at the same MACs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from prunegym.agents.comparison.entries import Entry, Run, as_entry
from prunegym.agents.comparison.results import VERSION, Result, fingerprint, slug
from prunegym.agents.comparison.statistics import Interval, interval
from prunegym.agents.evaluation.evaluator import JSON_KEYS, evaluate
from prunegym.agents.evaluation.predictors import PredictorOptions
from prunegym.errors import InvalidInputError
from prunegym.models.checks import check_dense, check_masked
from prunegym.models.data.dataset import Dataset
from prunegym.models.data.dataset_registry import other_split
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.storage.model_file import Bundle, CNNInfo

Report = Callable[[str, int, Result], None]
Model: TypeAlias = MaskedCNN | DynamicCNN | Bundle
DIFFERENCES = ("difference", "difference_over_seeds", "reward_difference", "reward_difference_over_seeds")


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """An agent's line in the table.

    Attributes:
        name: Of the agent.
        figures: Each key of :data:`JSON_KEYS`: mean over seeds with its 95 % Student-t interval; no interval for an
            agent on which the seed has no bearing.
        difference: Accuracy minus the reference's, paired by image: mean over seeds for each image, then mean over
            images with its interval. None for the reference.
        difference_over_seeds: The same with the interval over seeds, each paired with the reference's run of that seed.
        reward_difference: The reward, correct - penalty * total MAC share, minus the reference's, paired by image.
        reward_difference_over_seeds: The same with the interval over seeds.
        static_seeds: In how many of the runs the policy is static.
        verdict: Of the first run.
        notes: What a reader has to know.
        results: Of each seed.
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
        figures = {key: dataclasses.asdict(value) for key, value in self.figures.items()}
        differences: dict[str, Any] = {}
        for key in DIFFERENCES:
            value: Interval | None = getattr(self, key)
            differences[key] = None if value is None else dataclasses.asdict(value)
        return {
            "name": self.name,
            "figures": figures,
            **differences,
            "static_seeds": self.static_seeds,
            "verdict": self.verdict,
            "notes": list(self.notes),
            "seeds": {str(seed): result.figures for seed, result in self.results.items()},
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Agents side by side.

    Attributes:
        dataset: Name and split.
        reference: Name of the row from which differences are counted, and whose MAC share baselines get.
        seeds: The seeds.
        rows: In the order of the entries.
    """

    dataset: str
    reference: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as plain JSON."""
        return {
            "dataset": self.dataset,
            "reference": self.reference,
            "seeds": list(self.seeds),
            "rows": [row.as_json() for row in self.rows],
        }


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
    penalty: float = 0.5,
    dense: nn.Module | None = None,
    device: str = "cpu",
    report: Report | None = None,
) -> Comparison:
    """Train and evaluate agents side by side.

    Each result is a JSON file under ``out/results``, and is used again if the same entry, seed, model, data and options
    are asked for; training runs are under ``out/runs`` and go on where they were interrupted.

    Args:
        entries: See :func:`prunegym.agents.comparison.entries.as_entry`.
        model: The CNN that recipes, baselines and agents with ``predict`` mask; gates that it brings are where recipes
            start. For each seed another one, as a mapping, gives intervals over whole preparations.
        dataset: The split that is evaluated.
        seeds: Of the training runs and of what baselines draw.
        out: Folder.
        train: Training images; by default those of the data set that goes by the name, which has to be the same.
        validation: Validation images; the same.
        reference: Name of an entry; by default the first.
        penalty: lambda of the figure ``reward``.
        dense: The original network, see :func:`evaluate`.
        device: Torch device.
        report: Called after each result with the entry's name, the seed and the result.

    Returns:
        The table.

    Raises:
        InvalidInputError: If there are no entries or seeds, two entries have one name, ``reference`` names none, a seed
            has no model, a model or ``dense`` does not fit the images and classes, or the data set is your own, and
            ``train`` or ``validation`` is missing.
    """
    rows = [as_entry(entry) for entry in entries]
    first = check_entries(rows, seeds, reference)
    train = other_split(dataset, "train", "train=") if train is None else train
    validation = other_split(dataset, "validation", "validation=") if validation is None else validation
    subjects = _subjects(model, seeds, _Data(dataset, train, validation), dense, device)
    epochs = max(5.0, first.passes(len(train)))
    options = {"version": VERSION, "penalty": penalty, "dense": fingerprint(dense)}
    found: dict[str, dict[int, Result]] = {entry.name: {} for entry in rows}
    for entry in sorted(rows, key=lambda entry: entry is not first):
        each = isinstance(model, Mapping) or entry.seeded or (entry.at_share and first.seeded)
        for seed in seeds if each else seeds[:1]:
            share = 1.0 if entry is first else _share(found[first.name], seed)
            subject = subjects[seed]
            run = Run(
                subject.masked, subject.info, subject.policy, *subject.data, seed, share, epochs, penalty, Path(out),
                device,
            )  # fmt: skip
            found[entry.name][seed] = _result(entry, run, subject.model, {**options, **subject.marks}, penalty, dense)
            if report is not None:
                report(entry.name, seed, found[entry.name][seed])
    table = tuple(_row(entry, found[entry.name], found[first.name], entry is first, penalty) for entry in rows)
    return Comparison(f"{dataset.name}/{dataset.split}", first.name, tuple(seeds), table)


def check_entries(entries: Sequence[Entry], seeds: Sequence[int], reference: str | None = None) -> Entry:
    """Return the entry from which differences are counted.

    Raises:
        InvalidInputError: If there are no entries or seeds, two entries have one name or one folder for other runs, or
            ``reference`` names none.
    """
    if not entries or not seeds:
        raise InvalidInputError(
            f"There are {len(entries)} entries and {len(seeds)} seeds; at least one of each is needed."
        )
    names = [entry.name for entry in entries]
    files = [slug(name) for name in names]
    twice = sorted({name for name, file in zip(names, files, strict=True) if files.count(file) > 1})
    if twice:
        raise InvalidInputError(f"Several entries are called {', '.join(map(repr, twice))}. Give each its own name.")
    trained: dict[str, Entry] = {}
    for entry in entries:
        other = entry if entry.run_name is None else trained.setdefault(slug(entry.run_name), entry)
        if other.key != entry.key:
            raise InvalidInputError(
                f"The recipes of {other.name!r} and {entry.name!r} are both called {entry.run_name!r}, which is where "
                "their runs would be. Rename one of the files."
            )
    if reference is not None and reference not in names:
        raise InvalidInputError(f"The reference {reference!r} is none of the entries: {', '.join(names)}.")
    return entries[names.index(reference) if reference is not None else 0]


class _Data(NamedTuple):
    """The images of a comparison."""

    dataset: Dataset
    train: Dataset
    validation: Dataset


class _Subject(NamedTuple):
    """A model that is compared on, its parts, the images as it takes them, and what tells all this from others."""

    model: Model
    masked: MaskedCNN
    policy: Any
    info: CNNInfo
    data: _Data
    marks: dict[str, Any]


def _subjects(
    model: Model | Mapping[int, Model], seeds: Sequence[int], data: _Data, dense: nn.Module | None, device: str
) -> dict[int, _Subject]:
    if not isinstance(model, Mapping):
        return dict.fromkeys(seeds, _subject(model, data, dense, device))
    missing = [seed for seed in seeds if seed not in model]
    if missing:
        raise InvalidInputError(
            f"There is no model for seed {', '.join(map(str, missing))}, only for {', '.join(map(str, model))}. Give "
            "one for each seed, or one model for all."
        )
    return {seed: _subject(model[seed], data, dense, device) for seed in seeds}


def _subject(model: Model, data: _Data, dense: nn.Module | None, device: str) -> _Subject:
    if isinstance(model, MaskedCNN):
        masked, policy, info = model, None, CNNInfo.of(type(model.network).__name__, data.dataset)
    else:
        masked, policy, info = model.masked, model.policy, model.info
    masked.to(device)
    if policy is not None:
        policy.to(device)
    data = _Data(*(info.adapt(part) for part in data))
    for part in data:
        check_masked(masked, part)
    if dense is not None:
        check_dense(dense, masked, data.dataset)
    marks = {"model": fingerprint(masked), "policy": fingerprint(policy)}
    marks |= {name: fingerprint(part) for name, part in data._asdict().items()}
    return _Subject(model, masked, policy, info, data, marks)


def _share(reference: dict[int, Result], seed: int) -> float:
    result = reference.get(seed) or next(iter(reference.values()))
    return min(1.0, result.figures["total_mac_share"])


def _result(
    entry: Entry, run: Run, model: Any, options: dict[str, Any], penalty: float, dense: nn.Module | None
) -> Result:
    path = run.root / "results" / slug(run.dataset.split) / f"{slug(entry.name)}-seed{run.seed}.json"
    share = round(run.share, 6) if entry.at_share else None
    epochs = run.epochs if entry.as_long else None
    key = entry.key if entry.seed_key is None else entry.seed_key(run.seed)
    configuration = {"entry": key, "seed": run.seed, "share": share, "epochs": epochs, **options}
    stored = None if key is None else Result.load(path, configuration)
    if stored is not None:
        return stored
    evaluation = evaluate(
        entry.make(run), model, run.dataset, penalty=penalty, dense=dense, device=run.device,
        options=PredictorOptions(train=run.train),
    )  # fmt: skip
    result = Result.of(evaluation)
    result.save(path, configuration)
    return result


def _row(
    entry: Entry, results: dict[int, Result], reference: dict[int, Result], is_reference: bool, penalty: float
) -> Row:
    figures = {key: interval([result.figures[key] for result in results.values()]) for key in JSON_KEYS}
    differences: dict[str, Interval | None] = dict.fromkeys(DIFFERENCES)
    if not is_reference:
        pairs = [
            (results.get(seed) or next(iter(results.values())), reference.get(seed) or next(iter(reference.values())))
            for seed in sorted({*results, *reference})
        ]
        gaps = torch.stack([own.correct.double() - other.correct.double() for own, other in pairs])
        rewards = torch.stack([own.rewards(penalty) - other.rewards(penalty) for own, other in pairs])
        for name, values in (("difference", gaps), ("reward_difference", rewards)):
            differences[name] = interval(values.mean(0).tolist())
            differences[f"{name}_over_seeds"] = interval(values.mean(1).tolist())
    notes = tuple(dict.fromkeys(note for result in results.values() for note in result.notes))
    static = sum(result.is_static for result in results.values())
    verdict = next(iter(results.values())).verdict
    return Row(entry.name, figures, **differences, static_seeds=static, verdict=verdict, notes=notes, results=results)
