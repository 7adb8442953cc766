"""Agents of Stable-Baselines3 in files. They are pickles, so loading one can run any code."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from stable_baselines3 import A2C, PPO

from prunegym.errors import InvalidInputError
from prunegym.models.data.files.bounded_files import check_regular


def load_sb3(path: Path, trust_code: bool) -> PPO | A2C:
    """Load an agent of PPO or A2C.

    Args:
        path: A ``.zip`` file of Stable-Baselines3.
        trust_code: Whether the file may run any code on this machine.

    Raises:
        InvalidInputError: Without ``trust_code``, or if there is no such agent in the file.
    """
    if not trust_code:
        raise InvalidInputError(
            f"{path} is a file of Stable-Baselines3, which can run any code when it is loaded. If you trust who made "
            "it, add --trust-code, in Python trust_code=True. Or ask for a model file of DynamicCNN.save: it has no "
            "code."
        )
    check_regular(path, "agent of Stable-Baselines3")
    try:
        with zipfile.ZipFile(path) as file:
            settings = json.loads(file.read("data"))
        return (PPO if "clip_range" in settings else A2C).load(path, device="cpu")
    except Exception as error:  # whatever Stable-Baselines3, pickle and zip raise
        raise InvalidInputError(
            f"{path} cannot be loaded as an agent of PPO or A2C ({type(error).__name__}: {error}). Save it again."
        ) from error
