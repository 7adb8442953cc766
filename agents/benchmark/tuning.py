"""Searching for settings of a recipe by Optuna, on validation images."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from prunegym.agents.rl.recipe import Recipe
from prunegym.agents.rl.recipe_files import make_recipe, read_recipe
from prunegym.agents.rl.trainer import train_agent, try_recipe
from prunegym.errors import InvalidInputError, MissingDependencyError
from prunegym.models.data.files.bounded_files import read_json
from prunegym.models.storage.model_file import Bundle
from prunegym.models.storage.run_folder import begin_run, finish_run
from prunegym.models.storage.weights import save_text
from prunegym.settings import Change, changed
from prunegym.validation import choice, finite, whole_number

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from prunegym.agents.benchmark.executors.ray_trials import RayTrials

Space = Mapping[str, Any]
SPACE: Space = {
    "hyperparameters.learning_rate": {"low": 1e-4, "high": 3e-3, "log": True},
    "hyperparameters.n_epochs": {"low": 1, "high": 4},
    "sharpen": {"low": 1.0, "high": 4.0},
    "n_minibatches": [1, 2, 4],
}
"""What is searched if nothing else is given: ranges with ``low``, ``high`` and ``log``, or lists of values."""
FOLDER, INTERRUPTED = "folder", "interrupted"
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
    """

    number: int
    state: str
    reward: float | None
    settings: Mapping[str, Any]
    folder: str


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
    median of the others at the same step is stopped. After an interruption, the unfinished trial continues from its
    checkpoint.

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
        All trials, the best first. ``OUT/best.yaml`` is the recipe of the best.

    Raises:
        MissingDependencyError: If Optuna is not installed.
        InvalidInputError: If the space is wrong, or the folder has another study.
        PruneGymError: If the recipe cannot run with the middle of the space.
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
    for wanted in (_end(space, 0), _end(space, -1)):
        try_recipe(
            _recipe(name, env, own, wanted), model.masked, model.data["train"], model.data["validation"], model.policy
        )
    begin_run(
        out, {"recipe": own, "env": env, "space": dict(space), "seed": model.seed}, resume,
        {"CNN": model.masked, "gates": model.policy, **model.data},
    )  # fmt: skip
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=model.seed)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    study = optuna.create_study(
        storage=f"sqlite:///{out / STUDY}", study_name="prunegym", direction="maximize", sampler=sampler, pruner=pruner,
        load_if_exists=True,
    )  # fmt: skip
    for lost in _in_hand(study):
        if not lost.state.is_finished():
            study.tell(lost.number, state=optuna.trial.TrialState.FAIL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.enqueue_trial(lost.params, user_attrs={FOLDER: lost.user_attrs[FOLDER]})

    def objective(trial: Trial) -> float:
        folder = out / str(trial.user_attrs.get(FOLDER, f"trial-{trial.number}"))
        trial.set_user_attr(FOLDER, folder.name)
        values = {key: _suggest(trial, key, one) for key, one in space.items()}
        best = -float("inf")

        def watch(_stage: str, row: Mapping[str, Any]) -> None:
            nonlocal best
            if "timesteps" not in row:
                return
            best = max(best, float(row["reward"]))
            trial.report(best, step=int(row["updates"]))
            if trial.should_prune():
                raise optuna.TrialPruned

        made = _recipe(name, env, own, values)
        try:
            if cluster is not None:
                cluster.train(made, folder, watch)
            else:
                train_agent(
                    model.masked, model.info, model.data["train"], model.data["validation"], made, folder,
                    policy=model.policy, seed=model.seed, resume=(folder / "run.json").exists(), device=model.device,
                    progress=False, report=watch,
                )  # fmt: skip
        except KeyboardInterrupt:
            trial.set_user_attr(INTERRUPTED, True)  # Optuna would take it for a trial that fails
            raise
        return _best_of(folder)

    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    tell = None if report is None else [lambda _, trial: report(_tried(trial, out))]
    slots = 1 if cluster is None else cluster.slots
    while (left := trials - len(study.get_trials(states=done))) > 0:
        study.optimize(objective, n_trials=min(left, slots), n_jobs=slots, callbacks=tell)
    found = [_tried(trial, out) for trial in study.get_trials(states=done)]
    found.sort(key=lambda one: -float("inf") if one.reward is None else -one.reward)
    complete = [one for one in found if one.state == "complete"]
    if complete:
        best = changed(own, [(tuple(key.split(".")), value) for key, value in complete[0].settings.items()])
        save_text(out / BEST, yaml.safe_dump({env: best}, sort_keys=False))
        shutil.copyfile(Path(complete[0].folder) / "model.safetensors", out / "model.safetensors")
    finish_run(out, 0.0, {"trials": [dataclasses.asdict(one) for one in found]})
    return [*complete, *(one for one in found if one.state != "complete")]


def _in_hand(study: Study) -> list[FrozenTrial]:
    """Return trials that an interruption or the end of the process left, and that no later one continues."""
    trials = study.get_trials()
    left = [one for one in trials if one.user_attrs.get(INTERRUPTED) or one.state.name == "RUNNING"]
    later = {one.number: {other.user_attrs.get(FOLDER) for other in trials[one.number + 1 :]} for one in left}
    return [one for one in left if FOLDER in one.user_attrs and one.user_attrs[FOLDER] not in later[one.number]]


def check_space(space: Space) -> None:
    """Raise InvalidInputError if a space is not of ranges and lists."""
    if not isinstance(space, Mapping) or not space:
        raise InvalidInputError(f"The space is {space!r}; settings by name are needed, with a range or a list each.")
    for key, one in space.items():
        if isinstance(one, list) and one:
            continue
        if not isinstance(one, Mapping):
            raise InvalidInputError(f"{key} of the space is {one!r}; {{low: 0.1, high: 1.0}} or a list is needed.")
        for word in one:
            choice(f"word in the range of {key}:", word, ("low", "high", "log"))
        low, high = (finite(f"{word} of {key}", one.get(word)) for word in ("low", "high"))
        if low >= high or (one.get("log") and low <= 0):
            raise InvalidInputError(f"The range of {key} is {dict(one)}; low must be below high, and above 0 for log.")


def _end(space: Space, which: int) -> dict[str, Any]:
    """Return one end of the space."""
    return {key: one[which] if isinstance(one, list) else one[("low", "high")[which]] for key, one in space.items()}


def _recipe(name: str, env: str, own: Mapping[str, Any], values: Mapping[str, Any]) -> Recipe:
    return make_recipe(name, env, changed(own, [(tuple(key.split(".")), value) for key, value in values.items()]))


def _suggest(trial: Trial, key: str, one: Any) -> Any:
    if isinstance(one, list):
        return trial.suggest_categorical(key, one)
    whole = all(isinstance(one[word], int) for word in ("low", "high"))
    suggest: Any = trial.suggest_int if whole else trial.suggest_float
    return suggest(key, one["low"], one["high"], log=bool(one.get("log")))


def _best_of(folder: Path) -> float:
    """Return the highest validation reward of a run, from its file: a resumed run has reported a part only."""
    history = read_json(folder / "monitor.json", "history")["history"]
    return max(float(row["reward"]) for row in history)


def _tried(trial: FrozenTrial, out: Path) -> Tried:
    folder = str(out / str(trial.user_attrs.get(FOLDER, f"trial-{trial.number}")))
    return Tried(trial.number, trial.state.name.lower(), trial.value, dict(trial.params), folder)
