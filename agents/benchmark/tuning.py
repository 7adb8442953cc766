"""Searching for settings of a recipe by Optuna, on validation images."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from prunegym.agents.benchmark.cells import ERROR
from prunegym.agents.benchmark.executors.local import error_text
from prunegym.agents.benchmark.search_space import SPACE, Space, check_space, space_end, suggested
from prunegym.agents.rl.recipe import Recipe
from prunegym.agents.rl.recipe_files import make_recipe, read_recipe
from prunegym.agents.rl.trainer import train_agent, try_recipe
from prunegym.errors import MissingDependencyError, PruneGymError
from prunegym.models.data.files.bounded_files import read_json
from prunegym.models.storage.model_file import Bundle
from prunegym.models.storage.run_folder import begin_run, finish_run
from prunegym.models.storage.weights import save_text
from prunegym.models.training.cnn_training import StageReport
from prunegym.settings import Change, changed
from prunegym.validation import whole_number

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from prunegym.agents.benchmark.executors.ray_trials import RayTrials

FOLDER, INTERRUPTED, FAILURE = "folder", "interrupted", "error"
"""Attributes of a trial: its folder, whether it was interrupted, and the error of one that failed."""
FIRST = 5
"""A search stops if so many trials fail and none has ended."""
STUDY = "study.db"
BEST = "best.yaml"


@dataclasses.dataclass(frozen=True)
class Tried:
    """A trial.

    Attributes:
        number: Its number in the study.
        state: ``complete``, ``pruned`` or ``fail``.
        reward: The highest validation reward; None for a trial that failed.
        settings: What was tried.
        folder: Folder of its run.
        error: What a trial that failed raised.
    """

    number: int
    state: str
    reward: float | None
    settings: Mapping[str, Any]
    folder: str
    error: str | None = None


def tune_recipe(
    model: Bundle,
    recipe: str | Path,
    out: Path | str,
    *,
    space: Space = SPACE,
    trials: int = 20,
    settings: tuple[Change, ...] = (),
    resume: bool = False,
    report: Callable[[Tried], None] | None = None,
    cluster: RayTrials | None = None,
) -> list[Tried]:
    """Search for the settings of a recipe with the highest reward on the validation images.

    Trials are runs in ``OUT/trial-N``, and the study is ``OUT/study.db`` (SQLite). A trial that is worse than the
    median of the others at the same step is stopped. A trial that fails keeps its error in ``error.txt``, does not
    count, and the search continues. After an interruption, the unfinished trial continues from its checkpoint.

    Args:
        model: The CNN with gates or without, with images ``train`` and ``validation``; its seed is that of all trials.
        recipe: Name or file of a recipe.
        out: Folder of the study.
        space: Settings by name, with dots: a range ``{low, high, log}`` or a list of values.
        trials: Number of trials in all, those before an interruption included.
        settings: Further changes of the recipe, for all trials.
        resume: Continue in a folder that has this study.
        report: Called after each trial.
        cluster: Trains several trials at once on a Ray cluster; None trains one after the other in this process.

    Returns:
        All trials, the best first, those that failed last. ``OUT/best.yaml`` is the recipe of the best.

    Raises:
        MissingDependencyError: If Optuna is not installed.
        InvalidInputError: If the space is wrong, or the folder has another study.
        PruneGymError: If the recipe cannot run with the ends of the space, or too many trials fail: the first five, or
            later more than five and than ``trials``.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingDependencyError("Tuning needs Optuna: pip install 'prunegym[tune]'.") from error
    out = Path(out)
    whole_number("trials", trials)
    check_space(space)
    name, env, own = read_recipe(recipe)
    own = changed(own, settings)
    for wanted in (space_end(space, 0), space_end(space, -1)):
        try_recipe(
            _recipe(name, env, own, wanted), model.masked, model.data["train"], model.data["validation"], model.policy
        )
    begin_run(
        out, {"recipe": own, "env": env, "space": dict(space), "seed": model.seed}, resume,
        {"CNN": model.masked, "gates": model.policy, **model.data},
    )  # fmt: skip
    study, begun = _open_study(out, model.seed)
    objective = _Objective(model, lambda values: _recipe(name, env, own, values), space, out, cluster)
    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    tell = None if report is None else [lambda _, trial: report(_tried(trial, out))]
    slots = 1 if cluster is None else cluster.slots
    failed: list[FrozenTrial] = []
    while (left := trials - len(study.get_trials(states=done))) > 0 and not _too_many(len(failed), trials, left):
        study.optimize(objective, n_trials=min(left, slots), n_jobs=slots, callbacks=tell, catch=_FailedTrialError)
        failed = [one for one in study.get_trials()[begun:] if FAILURE in one.user_attrs]
    found = _ranked([_tried(trial, out) for trial in study.get_trials()])
    if found and found[0].state == "complete":
        best = changed(own, [(tuple(key.split(".")), value) for key, value in found[0].settings.items()])
        save_text(out / BEST, yaml.safe_dump({env: best}, sort_keys=False))
        shutil.copyfile(Path(found[0].folder) / "model.safetensors", out / "model.safetensors")
    finish_run(out, 0.0, {"trials": [dataclasses.asdict(one) for one in found]})
    if left > 0:
        last = _tried(failed[-1], out)
        raise PruneGymError(
            f"{len(failed)} trials failed and {trials - left} of {trials} ended, so the search stopped. The last that "
            f"failed, {last.folder}, had the settings {dict(last.settings)}: {last.error}\nCorrect the cause and add "
            "--resume, or give a space without such settings (--space) and another --out."
        )
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Objective:
    """Trains with a trial's settings, and returns the highest validation reward."""

    model: Bundle
    recipe: Callable[[Mapping[str, Any]], Recipe]
    space: Space
    out: Path
    cluster: RayTrials | None

    def __call__(self, trial: Trial) -> float:
        import optuna

        folder = self.out / str(trial.user_attrs.get(FOLDER, f"trial-{trial.number}"))
        trial.set_user_attr(FOLDER, folder.name)
        made = self.recipe({key: suggested(trial, key, one) for key, one in self.space.items()})
        try:
            self._train(made, folder, _watching(trial))
            return _best_of(folder)
        except KeyboardInterrupt:
            trial.set_user_attr(INTERRUPTED, True)  # Optuna would take it for a trial that fails
            raise
        except optuna.TrialPruned:
            raise
        except Exception as error:  # settings that no check foresees fail in torch or Stable-Baselines3
            trial.set_user_attr(FAILURE, error_text(error))
            folder.mkdir(parents=True, exist_ok=True)
            save_text(folder / ERROR, error_text(error) + "\n")
            raise _FailedTrialError from error

    def _train(self, recipe: Recipe, folder: Path, watch: StageReport) -> None:
        model = self.model
        if self.cluster is not None:
            self.cluster.train(recipe, folder, watch)
            return
        train_agent(
            model.masked, model.info, model.data["train"], model.data["validation"], recipe, folder,
            policy=model.policy, seed=model.seed, resume=(folder / "run.json").exists(), device=model.device,
            progress=False, report=watch,
        )  # fmt: skip


def _watching(trial: Trial) -> StageReport:
    """Return a report of a training that stops it if the trial is worse than others."""
    import optuna

    best = -float("inf")

    def watch(_stage: str, row: Mapping[str, Any]) -> None:
        nonlocal best
        if "timesteps" not in row:
            return
        best = max(best, float(row["reward"]))
        trial.report(best, step=int(row["updates"]))
        if trial.should_prune():
            raise optuna.TrialPruned

    return watch


def _open_study(out: Path, seed: int) -> tuple[Study, int]:
    """Open the study of a folder, or a new one, with the trials that were cut off in its queue.

    Returns:
        The study, and how many trials it has already.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would print the traceback of each trial that fails
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    study = optuna.create_study(
        storage=f"sqlite:///{out / STUDY}", study_name="prunegym", direction="maximize", pruner=pruner,
        load_if_exists=True,
    )  # fmt: skip
    begun = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=_sampler_seed(seed, begun))
    for lost in _in_hand(study):
        if not lost.state.is_finished():
            study.tell(lost.number, state=optuna.trial.TrialState.FAIL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.enqueue_trial(lost.params, user_attrs={FOLDER: lost.user_attrs[FOLDER]})
    return study, begun


def _ranked(tried: list[Tried]) -> list[Tried]:
    """Return the trials that ended, the best first, then those that were stopped early, then those that failed."""
    states = ("complete", "pruned", "fail")
    ended = [one for one in tried if one.state in states[:2] or one.error is not None]  # not those that were cut off
    return sorted(ended, key=lambda one: (states.index(one.state), 0.0 if one.reward is None else -one.reward))


class _FailedTrialError(Exception):
    """A trial failed, and its error is kept; the search continues."""


def _too_many(failed: int, trials: int, left: int) -> bool:
    """Return whether a search that has so many trials left to do should stop for the number of those that failed."""
    return failed >= FIRST and (left == trials or failed > trials)


def _sampler_seed(seed: int, begun: int) -> int:
    """Return the seed of the sampler in a study that has so many trials: else a resumed search repeats its draws."""
    return seed if begun == 0 else int(np.random.SeedSequence([seed, begun]).generate_state(1)[0])


def _in_hand(study: Study) -> list[FrozenTrial]:
    """Return trials that an interruption or the end of the process left, and that no later one continues."""
    trials = study.get_trials()
    left = [one for one in trials if one.user_attrs.get(INTERRUPTED) or one.state.name == "RUNNING"]
    later = {one.number: {other.user_attrs.get(FOLDER) for other in trials[one.number + 1 :]} for one in left}
    return [one for one in left if FOLDER in one.user_attrs and one.user_attrs[FOLDER] not in later[one.number]]


def _recipe(name: str, env: str, own: Mapping[str, Any], values: Mapping[str, Any]) -> Recipe:
    return make_recipe(name, env, changed(own, [(tuple(key.split(".")), value) for key, value in values.items()]))


def _best_of(folder: Path) -> float:
    """Return the highest validation reward of a run, from its file: a resumed run has reported a part only."""
    history = read_json(folder / "monitor.json", "history")["history"]
    return max(float(row["reward"]) for row in history)


def _tried(trial: FrozenTrial, out: Path) -> Tried:
    folder = str(out / str(trial.user_attrs.get(FOLDER, f"trial-{trial.number}")))
    return Tried(
        trial.number, trial.state.name.lower(), trial.value, dict(trial.params), folder, trial.user_attrs.get(FAILURE)
    )
