"""What a stored result claims, compared with an evaluation that is made now."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from prunegym.agents.comparison.results import Result
from prunegym.agents.evaluation.evaluator import Evaluation
from prunegym.agents.evaluation.masks import count_distinct, penalised_accuracy
from prunegym.models.masking.masked_cnn import MaskedCNN

MOST_OTHER_MASKS = 0.005
"""Share of images whose mask may differ on another machine: rounding flips bits near a threshold."""
MOST_OTHER_MACS = 0.002
SAME_SCORE = 1e-3
"""What a score that is no right or wrong may differ by on another machine, absolute and relative."""
EXACT = 1e-6
"""What figures may differ by on the same machine; they are sums of the same numbers."""
ROUNDING = 1e-9
"""So that a difference of just the tolerance counts as within it."""
EARLIER_WORDS = (
    ("Per input: other images' masks lose", "The masks depend on the image: those of other images lose"),
    ("(-0.0 points", "(+0.0 points"),
)
"""Words in verdicts of earlier versions, with those of this one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Again:
    """An evaluation that is made now.

    Attributes:
        evaluation: The evaluation.
        result: The part of it that is stored.
        masked: The CNN that the agent masks.
        exact: Whether this machine is that of the run.
        shuffled: Returns the answers under the masks of other images, as in ``Evaluation.correct``.
    """

    evaluation: Evaluation
    result: Result
    masked: MaskedCNN
    exact: bool
    shuffled: Callable[[], Tensor]


def other_masks(claimed: Result, now: Result) -> float:
    """Return the share of images with another mask."""
    if claimed.masks is None or now.masks is None or claimed.masks.shape != now.masks.shape:
        return 1.0
    return torch.ne(claimed.masks, now.masks).any(1).double().mean().item()


def differences(claimed: Result, now: Again, penalty: float) -> list[str]:
    """Return what a result claims that does not hold, in words.

    Args:
        claimed: The result.
        now: The evaluation of its agent.
        penalty: Lambda of the figure ``reward``.
    """
    return [
        *_of_images(claimed, now),
        *_inconsistent(claimed, penalty),
        *_of_figures(claimed, now, penalty),
        *(_of_words(claimed, now) if now.exact else _of_verdict(claimed, now)),
    ]


def _of_images(claimed: Result, now: Again) -> Iterator[str]:
    other, most = other_masks(claimed, now.result), 0.0 if now.exact else MOST_OTHER_MASKS
    if other > most:
        yield f"{other:.2%} of the images have another mask; at most {most:.2%} may"
    if claimed.correct.shape != now.result.correct.shape:
        yield f"it has {len(claimed.correct)} images, and {len(now.result.correct)} now"
        return
    if now.exact and not torch.equal(claimed.correct, now.result.correct):
        yield "other images are answered correctly"
    answers = _otherwise(claimed.correct, now.result.correct)
    if not now.exact and answers > most + ROUNDING:
        yield f"{answers:.2%} of the images are answered otherwise; at most {most:.2%} may"
    if claimed.masks is not None and claimed.masks.shape == now.evaluation.masks.shape:
        # The MACs of a mask are whole numbers, so they are the same on all machines.
        shares = _shares_of(claimed.masks, now.evaluation, now.masked).float()
        wrong = ~torch.isclose(claimed.total_mac_shares, shares, rtol=EXACT, atol=EXACT)
        if wrong.any():
            yield f"total_mac_shares of {int(wrong.sum())} images are not those of their masks"


def _otherwise(claimed: Tensor, now: Tensor) -> float:
    """Return the share of images with another answer, or with another score than rounding gives."""
    if claimed.dtype == now.dtype == torch.bool:
        return claimed.ne(now).double().mean().item()
    near = torch.isclose(claimed.double(), now.double(), rtol=SAME_SCORE, atol=SAME_SCORE)
    return (~near).double().mean().item()


def _shares_of(masks: Tensor, found: Evaluation, masked: MaskedCNN) -> Tensor:
    """Return the total MAC share of each mask (images, mask_size) for the agent that was evaluated."""
    cost = masked.cost

    def constants(masks: Tensor) -> Tensor:
        none = torch.zeros(len(masks), dtype=torch.float64)
        return none if masked.constants is None or count_distinct(masks) == 1 else cost.compensation_macs(masks)

    deciding = found.policy_mac_share * cost.total_macs - constants(found.masks).mean()
    return cost.total_share(masks, deciding + constants(masks))


def _of_figures(claimed: Result, now: Again, penalty: float) -> Iterator[str]:
    for key in sorted({*claimed.figures, *now.result.figures}):
        before, after = claimed.figures.get(key), now.result.figures.get(key)
        if not _close(before, after, 0.0 if now.exact else _tolerance(key, now, penalty)):
            yield f"{key} is {before}, and {after} now"


def _close(claimed: Any, now: Any, tolerance: float) -> bool:
    if not isinstance(claimed, int | float) or not isinstance(now, int | float):
        return False
    return abs(claimed - now) <= max(tolerance + ROUNDING, EXACT)


def _tolerance(key: str, now: Again, penalty: float) -> float:
    """Return what a figure may differ by on another machine."""
    if key == "distinct_masks":
        return MOST_OTHER_MASKS * now.evaluation.images
    if key == "images":
        return 0.0
    if key == "policy_mac_share":  # adding constants costs more or less under another mask
        return 0.0 if now.masked.constants is None else MOST_OTHER_MACS
    if key in ("mac_share", "total_mac_share", "mac_share_std", "kept_share"):
        return MOST_OTHER_MACS
    if key == "reward":
        return MOST_OTHER_MASKS + penalty * MOST_OTHER_MACS
    # Accuracies. A reward of the task's own counts as one: its scale is not known.
    return MOST_OTHER_MASKS * (2 if key == "task_reward" else 1)


def _inconsistent(claimed: Result, penalty: float) -> list[str]:
    """Return which figures are not the means of what is stored for each image."""
    figures, correct, shares = claimed.figures, claimed.correct.double(), claimed.total_mac_shares.double()
    means = {
        "accuracy": correct.mean().item(),
        "total_mac_share": shares.mean().item(),
        "reward": penalised_accuracy(correct, shares, penalty).mean().item(),
    }
    return [
        f"{key} is {figures.get(key)}, but {value:.6f} image by image"
        for key, value in means.items()
        if not _close(figures.get(key), value, 1e-5)  # shares are stored as float32
    ]


def _of_words(claimed: Result, now: Again) -> Iterator[str]:
    if claimed.is_static != now.result.is_static:
        yield f"static is {claimed.is_static}, and {now.result.is_static} now"
    if _today(claimed.verdict) != now.result.verdict:
        yield f"verdict is {claimed.verdict!r}, and {now.result.verdict!r} now"
    if claimed.notes != now.result.notes:
        yield f"notes are {list(claimed.notes)}, and {list(now.result.notes)} now"


def _of_verdict(claimed: Result, now: Again) -> Iterator[str]:
    """Return whether a verdict of another machine is none that rounding can give."""
    static = claimed.is_static
    if claimed.verdict.startswith("Static") != static:
        yield f"static is {static}, but the verdict is {claimed.verdict!r}"
    if (static, _today(claimed.verdict)) == (now.result.is_static, now.result.verdict):
        return
    if static and claimed.figures.get("distinct_masks") == 1:
        return  # whether it may have one mask is a matter of its figures
    low, high = _possible_errors(now.evaluation.correct, now.shuffled())
    # Two standard errors decide, see prunegym.agents.evaluation.masks.verdict.
    if (low > 2) if static else (high <= 2):
        yield f"static is {static}, and {now.result.is_static} now; rounding cannot be why"
    stated = re.search(r"(\d+\.?\d*) standard errors", claimed.verdict)
    if stated is not None and not low - 0.05 <= float(stated[1]) <= high + 0.05:  # it has one decimal
        yield f"the verdict claims {stated[1]} standard errors; {low:.1f} to {high:.1f} are possible"


def _today(verdict: str) -> str:
    for earlier, today in EARLIER_WORDS:
        verdict = verdict.replace(earlier, today)
    return verdict


def _possible_errors(correct: Tensor, shuffled: Tensor) -> tuple[float, float]:
    """Return the lowest and highest number of standard errors, if rounding changes as many answers as it may.

    With b images that only their own mask gets right and c that only another one does, the number is
    (b - c) / sqrt(b + c). An answer that changes moves b or c by one.
    """
    gaps = correct.double() - shuffled.double()
    total, squares = gaps.sum().item(), gaps.square().sum().item()
    most = 2 * MOST_OTHER_MASKS * len(gaps)  # of both kinds of answers
    found = [(total + a * most) / max(squares + b * most, 1.0) ** 0.5 for a in (-1, 1) for b in (-1, 1)]
    return min(found), max(found)
