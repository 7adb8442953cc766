"""CNNs: masks, gates, costs, gate policies, networks, data. It needs neither gymnasium nor stable-baselines3.

Its public names are those of ``__init__.pyi``; each is imported from its module when it is first used.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
