"""PruneGym: Gymnasium environments in which per-input channel masks of a frozen CNN are the actions.

Importing it registers ``prunegym/ChannelMask-v0`` and ``prunegym/LayerwiseChannelMask-v0``, where gymnasium is
installed. Its public names are those of ``__init__.pyi``; each is imported from its module when it is first used.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

import lazy_loader

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.metadata.version("prunegym")
    return _public(name)


if importlib.util.find_spec("gymnasium") is not None:
    from prunegym.registration import register_environments

    register_environments()
