"""One comparison: entries and seeds on one model and its data. Each pair of the two is a cell, with its own folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from prunegym.agents.comparison.checking import check_reward, checked_models
from prunegym.agents.comparison.entries import Entry, Terms, as_entry
from prunegym.agents.comparison.results import VERSION, Result, fingerprint, save_agent, slug
from prunegym.agents.comparison.table import Comparison, of_seed, paired, row_of
from prunegym.agents.evaluation.evaluator import evaluate
from prunegym.agents.evaluation.predictors import PredictorOptions
from prunegym.agents.rl.recipe import Recipe, own_reward
from prunegym.errors import InvalidInputError
from prunegym.models.catalog import Model
from prunegym.models.data.dataset import Dataset
from prunegym.models.data.dataset_registry import other_split
from prunegym.models.storage.model_file import Bundle
from prunegym.models.storage.run_folder import begin_run, finish_run
from prunegym.models.training.cnn_training import StageReport
from prunegym.validation import choice


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Contest:
    """What all cells of one comparison have in common.

    Attributes:
        entries: The agents.
        reference: The entry whose MAC share is the budget of the baselines.
        models: The model of each seed, with its data.
        of_seeds: Whether each seed has its own model.
        root: Folder of the comparison; ``root/runs`` has the cells.
        share: The reference's MAC share, if it is a baseline for a given MAC share.
        penalty: lambda in the figure ``reward``.
        dense: The original network, see :func:`prunegym.evaluate`.
        reward: A recipe whose reward is the task's own; None if the figure ``reward`` is.
        described: How to open the model and its data again, as plain JSON; stored with each result.
        progress: Whether trainings show a progress bar.
        shared: Folder of trainings that other contests use too.
    """

    entries: tuple[Entry, ...]
    reference: Entry
    models: Mapping[int, Bundle]
    of_seeds: bool
    root: Path
    share: float | None = None
    penalty: float = 0.5
    dense: nn.Module | None = None
    reward: Recipe | None = None
    described: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    progress: bool = True
    shared: Path | None = None

    @classmethod
    def of(
        cls,
        entries: Sequence[Any],
        model: Model | Mapping[int, Model],
        dataset: Dataset,
        seeds: Sequence[int],
        *,
        train: Dataset | None = None,
        validation: Dataset | None = None,
        reference: str | None = None,
        share: float | None = None,
        dense: nn.Module | None = None,
        device: str = "cpu",
        **more: Any,
    ) -> Contest:
        """Make a contest, and check that its parts fit; see :func:`prunegym.agents.compare` for arguments and errors.

        Args:
            entries: See :func:`prunegym.agents.comparison.entries.as_entry`.
            model: The model, or one for each seed.
            dataset: The split to evaluate on.
            seeds: The seeds.
            train: Training images.
            validation: Validation images.
            reference: Name of an entry; by default the first.
            share: The reference's MAC share.
            dense: The original network.
            device: Torch device.
            **more: The other attributes.
        """
        rows = [as_entry(entry) for entry in entries]
        first = check_entries(rows, seeds, reference, share)
        train = other_split(dataset, "train", "train=") if train is None else train
        validation = other_split(dataset, "validation", "validation=") if validation is None else validation
        data = {"evaluated": dataset, "train": train, "validation": validation}
        models = checked_models(model, seeds, data, dense, device)
        return cls(
            entries=tuple(rows), reference=first, models=models, of_seeds=isinstance(model, Mapping), share=share,
            dense=dense, **more,
        )  # fmt: skip

    def check(self) -> None:
        """Raise an error if an entry cannot be made or evaluated, or the task's reward fails. Nothing is trained."""
        if self.reward is not None:
            for model in {id(model): model for model in self.models.values()}.values():
                check_reward(self.reward, model, self.penalty)
        for entry in self.entries:
            seeds = list(self.models)
            for seed in seeds if self.of_seeds or entry.seed_key is not None else seeds[:1]:
                entry.check(dataclasses.replace(self.models[seed], seed=seed))

    def seeds_of(self, entry: Entry) -> list[int]:
        """Return the seeds of an entry: only the first, if they make no difference."""
        return list(self.models) if self.depends_on_seed(entry) else list(self.models)[:1]

    def depends_on_seed(self, entry: Entry) -> bool:
        """Return whether an entry's result depends on the seed."""
        return self.of_seeds or entry.seeded or (entry.at_share and self.reference.seeded)

    @property
    def ordered(self) -> list[Entry]:
        """The entries, the reference first: others may need what it spends."""
        return sorted(self.entries, key=lambda entry: entry is not self.reference)

    def share_of(self, entry: Entry, reference: Result | None) -> float:
        """Return the MAC share that an entry may spend, given the reference's result; None for the reference itself."""
        spent = self.share or 1.0 if reference is None or entry is self.reference else _spent(reference)
        return min(1.0, spent)

    def folder(self, entry: Entry, seed: int) -> Path:
        """Return the folder of a cell.

        A training by a recipe has one folder for all splits. Other agents may depend on the split, for example by the
        reference's MACs there: the first split has the plain name, and others have their split in the name.
        """
        plain = self.root / "runs" / f"{slug(entry.run_name or entry.name)}-seed{seed}"
        name = self._result_name(seed)
        if entry.run_name is not None or (plain / name).exists() or not any(plain.glob("result-*.json")):
            return plain
        return plain.with_name(f"{plain.name}-{slug(self.models[seed].data['evaluated'].split)}")

    def file(self, entry: Entry, seed: int) -> Path:
        """Return the file of a cell's result."""
        return self.folder(entry, seed) / self._result_name(seed)

    def _result_name(self, seed: int) -> str:
        return f"result-{slug(self.models[seed].data['evaluated'].split)}.json"

    def configuration(self, entry: Entry, seed: int, share: float) -> dict[str, Any]:
        """Return everything that a result depends on, as plain JSON. An agent that may depend on more has no entry."""
        key = entry.key if entry.seed_key is None else entry.seed_key(seed)
        model = self.models[seed]
        own = None if self.reward is None else self.reward.as_dict()["env_kwargs"]
        return {
            "entry": key,
            "seed": seed,
            "share": round(share, 6) if entry.at_share else None,
            "epochs": self.epochs if entry.as_long else None,
            "version": VERSION,
            "penalty": self.penalty,
            "dense": fingerprint(self.dense),
            "reward": own,
            **_marks(model),
        }

    @property
    def epochs(self) -> float:
        """Passes over the training images of the reference, at least 5."""
        return max(5.0, self.reference.passes(len(next(iter(self.models.values())).data["train"])))

    def stored(self, entry: Entry, seed: int, share: float) -> Result | None:
        """Return the stored result of a cell; None if there is none, or one of another configuration."""
        configuration = self.configuration(entry, seed, share)
        return None if configuration["entry"] is None else Result.load(self.file(entry, seed), configuration)

    def result(self, entry: Entry, seed: int, share: float, report: StageReport | None = None) -> Result:
        """Return the result of a cell: the stored one, or that of an agent which is trained and evaluated now.

        Args:
            entry: The entry.
            seed: The seed.
            share: See :meth:`share_of`.
            report: Called with the stages of a training and their figures.
        """
        stored = self.stored(entry, seed, share)
        if stored is not None:
            return stored
        model, file = dataclasses.replace(self.models[seed], seed=seed), self.file(entry, seed)
        folder = file.parent
        configuration = self.configuration(entry, seed, share)
        started = time.perf_counter()
        if entry.run_name is None:  # a training by a recipe writes its own record, and may resume
            for old in (*folder.glob("*.json"), *folder.glob("*.safetensors")):
                old.unlink()
            settings = {**configuration, "entry": configuration["entry"] or entry.name, "seed": seed}
            begin_run(folder, settings, resume=False)
        terms = Terms(share, self.epochs, self.penalty, folder, self.progress, self.reward, report, self.shared)
        agent = entry.make(model, terms)
        found = evaluate(
            agent, model, model.data["evaluated"], penalty=self.penalty, dense=self.dense, device=model.device,
            options=PredictorOptions(train=model.data["train"]),
        )  # fmt: skip
        measure = None if self.reward is None else own_reward(self.reward, model.masked, model.data["evaluated"])
        own = None if measure is None else measure(found.masks, found.logits, self.penalty)
        result = Result.of(found, own)
        if entry.run_name is None:
            save_agent(agent, folder)
            finish_run(folder, time.perf_counter() - started)
        cell = {
            "agent": entry.name, "spec": entry.spec, "seed": seed, "each": self.depends_on_seed(entry),
            "model_of_seed": self.of_seeds, "reference": self.reference.name,
        }  # fmt: skip
        result.save(file, configuration, {**cell, **self.described, "penalty": self.penalty})
        return result

    def table(self, found: Mapping[str, dict[int, Result]]) -> Comparison:
        """Return the table, given the results of each entry by seed."""
        first = found[self.reference.name]
        rows = []
        for entry in self.entries:
            each = self.depends_on_seed(entry), self.depends_on_seed(self.reference)
            pairs = None if entry is self.reference else paired(found[entry.name], first, *each)
            rows.append(row_of(entry.name, found[entry.name], pairs, self.penalty))
        data = next(iter(self.models.values())).data["evaluated"]
        return Comparison(f"{data.name}/{data.split}", self.reference.name, tuple(self.models), tuple(rows))

    def run(self, report: Callable[[str, int, Result], None] | None = None) -> Comparison:
        """Run all cells, one after the other, and return the table."""
        found: dict[str, dict[int, Result]] = {entry.name: {} for entry in self.entries}
        for entry in self.ordered:
            for seed in self.seeds_of(entry):
                first = None if entry is self.reference else of_seed(found[self.reference.name], seed)
                found[entry.name][seed] = self.result(entry, seed, self.share_of(entry, first))
                if report is not None:
                    report(entry.name, seed, found[entry.name][seed])
        return self.table(found)


def _spent(result: Result) -> float:
    return result.figures["total_mac_share"]


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
    folders: dict[str, Entry] = {}
    for entry in entries:
        other = folders.setdefault(slug(entry.run_name or entry.name), entry)
        if other is not entry and other.key != entry.key:
            kind = "recipes of" if entry.run_name and other.run_name else "entries"
            raise InvalidInputError(
                f"The {kind} {other.name!r} and {entry.name!r} are both called {entry.run_name or entry.name!r}, so "
                "their runs would share a folder. Rename one of the files, or give another label."
            )
    first = entries[0 if reference is None else names.index(choice("reference", reference, names))]
    if first.at_share and share is None and first.key != {"baseline": "keep-all"}:
        raise InvalidInputError(
            f"{first.name!r} gets the MAC share of the first entry, but is the first entry. Put a recipe or an agent "
            "before it, or give a share: --target-macs 0.5, or share=0.5 in Python."
        )
    return first


def _marks(model: Bundle) -> dict[str, Any]:
    """Return hashes of a model and its data: a stored result is reused only if they are the same."""
    data = {"dataset" if part == "evaluated" else part: fingerprint(images) for part, images in model.data.items()}
    return {"model": fingerprint(model.masked), "policy": fingerprint(model.policy), **data}
