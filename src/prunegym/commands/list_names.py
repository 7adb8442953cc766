"""``list``: all names."""

from __future__ import annotations

import importlib.util

from prunegym.commands.options import JsonFlag
from prunegym.commands.output import Facts, emit


def list_names(as_json: JsonFlag = False) -> None:
    """List every name: networks, data sets, shipped models, rewards, accuracy terms, recipes, environments."""
    from prunegym.models.data.dataset_registry import SOURCES
    from prunegym.models.dynamic_cnn import SHIPPED
    from prunegym.models.zoo.network_registry import ZOO

    names = {"networks": sorted(ZOO), "data sets": sorted(SOURCES), "shipped models": sorted(SHIPPED)}
    # Rewards, recipes and environments need gymnasium. Without it, the names of the CNN side are still listed.
    if importlib.util.find_spec("gymnasium") is not None:
        from prunegym.agents.rl.recipe_files import FOLDER
        from prunegym.envs.rewards.accuracy import ACCURACY_TERMS
        from prunegym.envs.rewards.reward import REWARDS
        from prunegym.registration import LAYERWISE

        names |= {
            "rewards": sorted(REWARDS),
            "accuracy terms": sorted(ACCURACY_TERMS),
            "recipes": sorted(file.stem for file in FOLDER.glob("*.yaml")),
            "environments": sorted(LAYERWISE),
        }
    document = {key.replace(" ", "_"): value for key, value in names.items()}
    rows = {key: ", ".join(value) for key, value in names.items()}
    emit(document, as_json, Facts("Names", rows))
