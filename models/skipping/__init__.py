"""Running a masked CNN so that masked channels cost no time: the compiled kernel, or smaller convolutions in torch."""

from __future__ import annotations

from prunegym.models.skipping.kernel_path import KernelPath, translate
from prunegym.models.skipping.lowering import UnsupportedError, lower
from prunegym.models.skipping.program import Program

__all__ = ["KernelPath", "Program", "UnsupportedError", "lower", "translate"]
