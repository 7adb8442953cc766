"""A compiled CPU kernel that skips masked channels. It runs a whole network in one call, with one mask per image.

It is optional. :func:`available` says whether it was built and runs here, :func:`unavailable_reason` why not. It does
not depend on the rest of PruneGym: you describe a network to :class:`PlanBuilder` layer by layer.
"""

from __future__ import annotations

from prunegym.models.kernel.buffers import Value as Value
from prunegym.models.kernel.builder import PlanBuilder as PlanBuilder
from prunegym.models.kernel.passes import Pass as Pass
from prunegym.models.kernel.plan import GateHead as GateHead, Plan as Plan
from prunegym.models.kernel.shared_library import (
    KernelError as KernelError,
    available as available,
    bfloat16_variants as bfloat16_variants,
    byte_variants as byte_variants,
    unavailable_reason as unavailable_reason,
    variants as variants,
)
