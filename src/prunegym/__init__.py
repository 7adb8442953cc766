"""PruneGym: Gymnasium environments in which per-input channel masks of a frozen CNN are the actions.

Importing it registers ``prunegym/ChannelMask-v0`` and ``prunegym/LayerwiseChannelMask-v0``, where gymnasium is
installed. Its public names are those of ``__init__.pyi``; each is imported from its module when it is first used.
"""

from __future__ import annotations

import importlib.util

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

if importlib.util.find_spec("gymnasium") is not None:
    from prunegym.registration import register_environments

    register_environments()
