"""A compiled CPU kernel that really skips masked channels: a whole network in one call, one mask an image.

It is optional. :func:`available` says whether it was built and runs here, :func:`unavailable_reason` why not. It does
not depend on the rest of PruneGym: you describe a network to :class:`PlanBuilder` layer by layer.
"""

from __future__ import annotations

from prunegym.models.kernel.builder import PlanBuilder
from prunegym.models.kernel.plan import GateHead, Pass, Plan
from prunegym.models.kernel.shared_library import KernelError, Value, available, unavailable_reason, variants

__all__ = [
    "GateHead",
    "KernelError",
    "Pass",
    "Plan",
    "PlanBuilder",
    "Value",
    "available",
    "unavailable_reason",
    "variants",
]
