"""Comparison of agents: trained and evaluated for each seed, with intervals, and with baselines at the same MACs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from prunegym.agents.comparison.contest import Contest
from prunegym.agents.comparison.results import Result
from prunegym.agents.comparison.table import Comparison
from prunegym.models.catalog import Model
from prunegym.models.data.dataset import Dataset
from prunegym.models.precision import new_tensors_in
from prunegym.validation import typed


@new_tensors_in()
@typed
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

    All entries are checked before the first one is trained. Each entry and seed has a folder in ``out/runs``, with
    its run, its agent and its result. Results are reused for the same entry, seed, model, data and options; trainings
    resume if they were interrupted.

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
    contest = Contest.of(
        entries, model, dataset, seeds, train=train, validation=validation, reference=reference, share=share,
        dense=dense, device=device, root=Path(out), penalty=penalty, progress=progress,
    )  # fmt: skip
    contest.check()
    return contest.run(report)
