"""PruneGym: Gymnasium environments in which per-input channel masks of a frozen CNN are the actions."""

from __future__ import annotations

import importlib.util

# prunegym.models works without gymnasium, and importing it runs this file.
if importlib.util.find_spec("gymnasium") is not None:
    from prunegym.envs.registration import register_environments

    register_environments()
