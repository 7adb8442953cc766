"""Training an agent by a recipe: imitation, refinement, then reinforcement learning. Each stage can resume."""

from __future__ import annotations

import copy
import dataclasses
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from prunegym.agents.rl.callbacks import check_named, make_callbacks, make_logger
from prunegym.agents.rl.lagrangian import DualAscent, end_at_budget, gates_at_best_offset
from prunegym.agents.rl.mask_policy import MaskPolicy
from prunegym.agents.rl.monitor import TrainingMonitor
from prunegym.agents.rl.recipe import CLASSES, SCHEDULES, Recipe, linear_start, own_reward
from prunegym.agents.rl.recipe_files import as_recipe
from prunegym.envs.sb3_vec_env import MaskVecEnv
from prunegym.envs.sb3_wrappers import GroupAdvantage, SelfCritical
from prunegym.envs.simulator import MaskSimulator
from prunegym.envs.task import make_task
from prunegym.errors import InvalidInputError
from prunegym.models.checks import check_device, check_masked
from prunegym.models.data.dataset import Dataset
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.gating.static_policy import Policy, StaticPolicy
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.precision import new_tensors_in
from prunegym.models.storage.cnn_info import CNNInfo
from prunegym.models.storage.model_file import Bundle
from prunegym.models.storage.run_folder import begin_run, finish_run
from prunegym.models.storage.weights import naming
from prunegym.models.training.cnn_training import StageReport, answered, of_stage
from prunegym.models.training.mac_target import check_reachable, meet_target
from prunegym.models.training.preparation import PrepareConfig, prepare, seeded
from prunegym.registration import LAYERWISE
from prunegym.validation import choice, typed, whole_number


@new_tensors_in()
@typed
def train_agent(
    masked: MaskedCNN,
    info: CNNInfo,
    train: Dataset,
    validation: Dataset,
    recipe: Recipe | str | Path,
    out: Path | str,
    *,
    policy: Policy | None = None,
    seed: int = 0,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = True,
    report: StageReport | None = None,
) -> DynamicCNN:
    """Train an agent on a frozen CNN.

    Args:
        masked: The CNN. It is frozen.
        info: The CNN's description, to be stored with it.
        train: Training images. Without targets, the agent learns to agree with the CNN without masks.
        validation: Images on which the best agent of the run is chosen.
        recipe: A recipe, the name of one that comes with PruneGym, or a YAML file.
        out: Folder of the run. ``run.json`` has its settings, ``model.safetensors`` is the result, and
            ``start.safetensors`` has the gates before reinforcement learning. Checkpoints and TensorBoard logs are
            there too.
        policy: Gates to start from, such as a prepared model's; they are copied. Imitation and refinement are skipped.
            Gates that decide layer by layer are ignored if the recipe decides in one step, and the other way round.
        seed: Seed of the whole run, also of stages of the recipe that set none themselves.
        resume: Resume from the run's last checkpoint, up to the recipe's number of episodes.
        device: Torch device.
        progress: Show a progress bar.
        report: Called with the stage and its figures.

    Returns:
        The CNN with the policy that is best on the validation images, with deterministic masks. Policies are compared
        by correct - penalty * total MAC share if the recipe's reward is ``macs``, else by the recipe's own reward.

    Raises:
        InvalidInputError: If images or classes do not fit the CNN, if the folder has a run with other settings or
            another CNN, or if it has a run and ``resume`` is False.
        PruneGymError: Any error of :func:`try_recipe`.

    Warns:
        NewGatesWarning: If ``policy`` is ignored.
    """
    recipe, out = as_recipe(recipe), Path(out)
    whole_number("seed", seed, 0, 2**32 - 1)
    check_device(device)
    train, validation = (answered(info.adapt(data), masked) for data in (train, validation))
    check_masked(masked, train)
    check_masked(masked, validation)
    try_recipe(recipe, masked, train, validation, policy)
    if policy is not None and _gates_of_kind(policy, recipe) is None:
        way = "layer by layer" if LAYERWISE[recipe.env] else "all in one step"
        message = f"Recipe {recipe.name!r} decides {way}, and the model's gates do not. New gates are trained."
        warnings.warn(message, NewGatesWarning, stacklevel=2)
    policy = copy.deepcopy(_gates_of_kind(policy, recipe))
    recipe = seeded(recipe, seed) if policy is None else recipe
    settings = {"seed": seed, "dataset": train.name, "train_images": train.span, "cnn": info.architecture}
    inputs = {"CNN": masked, "gates": policy, "training images": train, "validation images": validation}
    begin_run(out, {"recipe": recipe.as_dict(), **settings}, resume, inputs)
    masked.freeze().to(device)
    started = time.perf_counter()
    data = {"train": train, "validation": validation}
    model = Bundle(masked=masked, info=info, policy=policy, data=data, seed=seed, device=device)
    saved = out / "start.safetensors"
    if resume and saved.exists():
        begun = DynamicCNN.load(saved, copy.deepcopy(masked.network), device)
        start = _gates(begun)
        masked.compensate(begun.masked.constants)
    else:
        start = _start(model, recipe, out, report)
        DynamicCNN(masked, start, info).save(saved)
    best = _reinforce(model, start, recipe, out, resume, progress, report)
    if recipe.budget is not None:
        end_at_budget(masked, best, validation, recipe.budget)
    trained = DynamicCNN(masked, best, info)
    trained.save(out / "model.safetensors")
    finish_run(out, time.perf_counter() - started)
    return trained


class NewGatesWarning(UserWarning):
    """The model has gates, but they decide at other steps than the recipe's environment."""


def _gates_of_kind(policy: Policy | None, recipe: Recipe) -> Policy | None:
    """Return gates that decide at the steps of the recipe's environment; None for others."""
    fit = policy is not None and policy.features.config["layerwise"] == LAYERWISE[recipe.env]
    return policy if fit else None


def try_recipe(recipe: Recipe, masked: MaskedCNN, train: Dataset, validation: Dataset, policy: Policy | None) -> None:
    """Play one episode of a recipe's task, measure its own reward and import its callbacks, to find mistakes early.

    Raises:
        UnknownNameError: For another environment, an unknown reward, accuracy term or logger.
        InvalidInputError: If the gates are static, if they are for another kind of lambda, or if an argument is wrong.
        RewardError: If your reward fails on either split, or returns something else than one number per episode.
    """
    if isinstance(policy, StaticPolicy):
        raise InvalidInputError(
            "The model's policy is static: it has one mask for all images. Use a model with gates that read the image."
        )
    layerwise = LAYERWISE[choice("environment", recipe.env, LAYERWISE)]
    policy = _gates_of_kind(policy, recipe)
    check_named("callback", recipe.callbacks)
    check_named("logger", recipe.loggers)
    if recipe.refine is not None and policy is None:
        check_reachable(f"Recipe {recipe.name!r}: refine's target_macs", recipe.refine.target_macs, masked)
    if recipe.budget is not None:
        check_reachable(f"Recipe {recipe.name!r}: the budget's target_macs", recipe.budget.target_macs, masked)
    features = MaskFeatures(masked, layerwise).to(masked.device)
    task = make_task(masked, train, layerwise=layerwise, features=features, **recipe.env_kwargs)
    if policy is not None and (policy.penalty_range is None) == isinstance(task.penalty, tuple):
        raise InvalidInputError(
            f"Recipe {recipe.name!r} has penalty {task.penalty}, but the model's gates are for "
            f"{'one lambda' if policy.penalty_range is None else f'the range {policy.penalty_range}'}. Change "
            "the recipe's penalty."
        )
    simulator = MaskSimulator(task, 4, np.random.default_rng(0))
    steps = recipe.n_envs * recipe.episodes_per_rollout * len(simulator.decisions)
    if recipe.algo == "ppo":
        hint = f"A rollout has {steps} steps, and a minibatch needs at least two."
        whole_number(f"Recipe {recipe.name!r}: n_minibatches", recipe.n_minibatches, high=steps // 2, hint=hint)
    simulator.reset()
    bits = np.ones((4, *task.action_space.shape), np.int8)
    for _ in simulator.decisions:
        simulator.step(bits)
    few = validation.sample(4)
    measure = own_reward(recipe, masked, few)
    if measure is not None:
        images = few.batch(torch.arange(len(few)), device=masked.device)
        with torch.inference_mode():
            measure(torch.ones(len(few), masked.mask_size, dtype=torch.bool), masked(images), recipe.middle_penalty)


def _start(model: Bundle, recipe: Recipe, out: Path, report: StageReport | None) -> GatePolicy:
    """Return the gates that reinforcement learning starts from; new ones are shifted to the recipe's target."""
    if model.policy is None:
        start, target = _prepared(model, recipe, out, report), recipe.target_macs
    else:
        start, target = _gates(model.policy.to(model.device)), "best" if recipe.target_macs == "best" else None
    if target == "best":
        held_out = model.data["validation"].sample(recipe.eval_images)
        made = DynamicCNN(model.masked, start, model.info)
        measure = own_reward(recipe, model.masked, held_out)
        return _gates(gates_at_best_offset(made, held_out, recipe.middle_penalty, measure=measure))
    if recipe.budget is not None:
        target = recipe.budget.target_macs
    if target is not None:
        meet_target(model.masked, start, model.data["train"], target)
    return start


def _prepared(model: Bundle, recipe: Recipe, out: Path, report: StageReport | None) -> GatePolicy:
    """Return new gates after the recipe's imitation and refinement."""
    penalty, refine = recipe.env_kwargs.get("penalty"), recipe.refine
    if refine is not None and recipe.compensation == "constant":
        refine = dataclasses.replace(refine, compensation="constant")
    config = PrepareConfig(
        imitation=recipe.imitation,
        tune=refine,
        layerwise=LAYERWISE[recipe.env],
        penalty_range=(penalty[0], penalty[1]) if isinstance(penalty, tuple | list) else None,
        seed=model.seed,
        **recipe.gate_policy,
    )
    prepared, policy = prepare(model.masked, model.data["train"], config, folder=out, report=report)
    model.masked.compensate(prepared.constants)
    return _gates(policy)


def _gates(made: DynamicCNN | Policy) -> GatePolicy:
    policy = made.policy if isinstance(made, DynamicCNN) else made
    assert isinstance(policy, GatePolicy)
    return policy


def _reinforce(
    model: Bundle,
    start: GatePolicy,
    recipe: Recipe,
    out: Path,
    resume: bool,
    progress: bool,
    report: StageReport | None,
) -> GatePolicy:
    if recipe.n_episodes == 0:
        return start
    env = training_env(model.masked, start, model.data["train"], recipe, model.seed, model.device)
    total = recipe.n_episodes * len(start.decisions)
    ascent = None if recipe.budget is None else DualAscent(recipe.budget, env.get_attr("task")[0])
    monitor = TrainingMonitor(model, recipe, out, progress, of_stage(report, recipe.algo), ascent)
    algorithm = build_algorithm(env, start, recipe, model.seed, model.device, out / "tensorboard")
    if resume and monitor.checkpoint.exists():
        monitor.restore(algorithm, total)
    if isinstance(env, SelfCritical):
        env.follow(algorithm.policy)
    done = algorithm.num_timesteps
    if done < total:
        if recipe.loggers:
            algorithm.set_logger(make_logger(recipe.loggers, out, f"{recipe.algo}_1"))
        callbacks = [monitor, *make_callbacks(recipe.callbacks)]
        with naming(out):
            algorithm.learn(total - done, callbacks, 10, tb_log_name=recipe.algo, reset_num_timesteps=done == 0)
            algorithm.logger.dump(algorithm.num_timesteps)  # the last figures, whatever the interval
        if recipe.loggers:
            algorithm.logger.close()
    assert monitor.best is not None
    return monitor.best


def training_env(
    masked: MaskedCNN, policy: GatePolicy, train: Dataset, recipe: Recipe, seed: int, device: str
) -> VecEnv:
    """Return the batched environment of a recipe, with its group baseline."""
    env: VecEnv = MaskVecEnv(
        recipe.env,
        recipe.n_envs,
        group=recipe.group,
        seed=seed,
        model=masked,
        dataset=train,
        features=policy.features,
        device=device,
        **recipe.env_kwargs,
    )
    if recipe.baseline == "greedy":
        return SelfCritical(env)
    return GroupAdvantage(env) if recipe.group > 1 else env


def build_algorithm(
    env: VecEnv, start: GatePolicy, recipe: Recipe, seed: int, device: str, log: Path | None = None
) -> OnPolicyAlgorithm:
    """Return the recipe's algorithm of Stable-Baselines3, with the given gates as its actor."""
    n_steps = recipe.episodes_per_rollout * len(start.decisions)
    settings = {**recipe.hyperparameters, "n_steps": n_steps}
    for setting in SCHEDULES:
        if isinstance(settings.get(setting), str):
            settings[setting] = LinearSchedule(linear_start(settings[setting], setting), 0.0, 1.0)
    if recipe.algo == "ppo":
        # SB3 needs the size of a minibatch: the steps of a rollout in all environments / the number of minibatches.
        settings["batch_size"] = max(1, n_steps * recipe.n_envs // recipe.n_minibatches)
    return CLASSES[recipe.algo](
        MaskPolicy,
        env,
        seed=seed,
        device=device,
        policy_kwargs={"gate_policy": start, "sharpen": recipe.sharpen},
        tensorboard_log=None if log is None else str(log),
        **settings,
    )
