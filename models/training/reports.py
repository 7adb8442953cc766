"""Callbacks that report the progress of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Report = Callable[[dict[str, float]], None]
"""Called with the figures of a step or an epoch, by name."""

StageReport = Callable[[str, dict[str, Any]], None]
"""Called with the name of a stage of training, and its figures by name."""


def of_stage(report: StageReport | None, stage: str) -> Report | None:
    """Return a callback for the figures of one stage; None if there is nobody to report to."""
    return None if report is None else lambda figures: report(stage, figures)
