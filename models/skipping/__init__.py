"""Running a masked CNN so that masked channels cost no time: the compiled kernel, or smaller convolutions in torch."""

from __future__ import annotations

from prunegym.models.skipping.choosing import Choice
from prunegym.models.skipping.cnn import EXECUTIONS, SkippingCNN, prefer_kernel
from prunegym.models.skipping.kernel_path import KernelPath, translate
from prunegym.models.skipping.lowering import UnsupportedError, lower
from prunegym.models.skipping.paths import Executed
from prunegym.models.skipping.program import Program

__all__ = [
    "EXECUTIONS",
    "Choice",
    "Executed",
    "KernelPath",
    "Program",
    "SkippingCNN",
    "UnsupportedError",
    "lower",
    "prefer_kernel",
    "translate",
]
