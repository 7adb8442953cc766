"""A recipe with what the command line says instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunegym.settings import Change, changed, parse

if TYPE_CHECKING:
    from prunegym.agents.rl.recipe import Recipe


def recipe_with(
    recipe: str,
    episodes: int | None = None,
    reward: str | None = None,
    penalty: float | None = None,
    settings: list[str] | None = None,
    target_macs: float | None = None,
) -> Recipe:
    """Return a recipe by name or file with some settings changed; those of ``--set`` come last."""
    from prunegym.agents.rl.recipe_files import make_recipe, read_recipe
    from prunegym.envs.rewards.reward import REWARDS, NamedReward

    stem, env, own = read_recipe(recipe)
    options = {
        ("n_episodes",): episodes, ("env_kwargs", "reward"): reward, ("env_kwargs", "penalty"): penalty,
    }  # fmt: skip
    changes: list[Change] = [(key, value) for key, value in options.items() if value is not None]
    if target_macs is not None:
        changes += [(("budget", "target_macs"), target_macs), (("target_macs",), None)]
        if (own.get("imitation") or {}).get("mac_share") is not None:
            # What the teacher spends is part of the budget too: gates that imitated another share would start off it.
            changes.append((("imitation", "mac_share"), target_macs))
        if own.get("refine") is not None:
            changes.append((("refine", "target_macs"), target_macs))
    changes += parse(settings or ())
    made = changed(own, changes)
    before, now = (str((one.get("env_kwargs") or {}).get("reward", "l0")) for one in (own, made))
    given = {key[-1] for key, _ in changes if key[0] == "env_kwargs"}
    dropped, named = set(), REWARDS.get(now, NamedReward())
    if now != before and (":" in now or named.whole):
        dropped.add("accuracy")  # what it returns is the whole reward
    if now != before and named.unit:
        # The recipe's lambda is for a share of the MACs: at that price one channel would cost as much as all of them.
        dropped.add("penalty")
    if dropped - given:
        made["env_kwargs"] = {key: value for key, value in made["env_kwargs"].items() if key not in dropped - given}
    return make_recipe(stem, env, made)
