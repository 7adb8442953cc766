"""Results that can be checked: the saved agent is evaluated again, and compared with what the run claims."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from prunegym.agents.benchmark.records import RESULTS, Record, read_record
from prunegym.agents.benchmark.reopening import open_cell, saved_agent, task_reward
from prunegym.agents.comparison.results import Result, fingerprint
from prunegym.agents.evaluation.evaluator import evaluate
from prunegym.agents.evaluation.masks import penalised_accuracy
from prunegym.agents.evaluation.predictors import PredictorOptions
from prunegym.errors import MissingDataError
from prunegym.models.data.files.bounded_files import read_json
from prunegym.models.kernel.shared_library import MAX_THREADS
from prunegym.models.storage.model_file import Bundle, read_model
from prunegym.models.storage.run_folder import machine
from prunegym.models.storage.weights import save_text
from prunegym.models.training.cnn_training import answered

VALIDATION = "validation.json"
SAME_MACHINE = ("system", "processor", "instructions", "torch", "kernel")
MOST_OTHER_MASKS = 0.005
"""Share of images whose mask may differ on another machine: rounding flips bits near a threshold."""
MOST_OTHER_MACS = 0.002
EXACT = 1e-6
"""What figures may differ by on the same machine; they are sums of the same numbers."""


@dataclasses.dataclass(frozen=True)
class Validation:
    """Whether a run's result holds.

    Attributes:
        file: The result.
        valid: Whether it does.
        exact: Whether this machine and torch are those of the run, so that every mask must be the same.
        problems: What differs.
        figures: Those of the evaluation made now.
        other_masks: Share of images with another mask than the run claims.
    """

    file: str
    valid: bool
    exact: bool
    problems: tuple[str, ...]
    figures: Mapping[str, float]
    other_masks: float


def validate(run: Path | str, *, trust_code: bool = False, device: str = "cpu", store: bool = True) -> list[Validation]:
    """Evaluate the saved agent of a run again, execution ``masked``, and compare with each result in its folder.

    On the machine and torch of the run, all masks must be equal, and all figures. Elsewhere at most 0.5 % of the images
    may have another mask, accuracy may differ by as many images, and MACs by 0.002.

    Args:
        run: Folder of a run of ``prunegym benchmark`` or ``prunegym compare``.
        trust_code: Also load agents of Stable-Baselines3, ``.zip``.
        device: Torch device.
        store: Write ``validation.json`` into the folder if all results hold, with the hashes of all its files; a
            result that does not hold removes it.

    Returns:
        A validation for each result in the folder.

    Raises:
        MissingDataError: If there is no result, or the agent, its model or its images are not there.
        InvalidInputError: If a file is damaged.
    """
    folder = Path(run)
    files = sorted(folder.glob(RESULTS))
    if not files:
        raise MissingDataError(f"{folder} has no result-*.json. Give the folder of one run, OUT/TASK/POINT/runs/AGENT.")
    before = hashes_of(folder)
    found = [_checked(read_record(file), trust_code, device) for file in files]
    if not store:
        return found
    if not all(one.valid for one in found) or hashes_of(folder) != before:
        (folder / VALIDATION).unlink(missing_ok=True)
        return found
    content = {
        "files": before,
        "results": [dataclasses.asdict(one) for one in found],
        "machine": machine(),
    }
    content["seal"] = _seal(content)
    save_text(folder / VALIDATION, json.dumps(content, indent=1) + "\n")
    return found


def why_not_trusted(folder: Path) -> str | None:
    """Return why the stored validation of a run does not count here; None if it does."""
    file = folder / VALIDATION
    if not file.is_file():
        return "it was not validated"
    try:
        content = read_json(file, "validation")
        seal, files = content.pop("seal"), content["files"]
        sealed = hmac.compare_digest(str(seal), _seal(content))
        now = hashes_of(folder)
        changed = sorted(name for name in {*files, *now} if files.get(name) != now.get(name))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its validation.json is damaged ({type(error).__name__})"
    if not sealed:
        return "its validation.json was edited, or made by somebody else"
    return f"files changed after it was validated ({', '.join(changed[:3])})" if changed else None


def hashes_of(folder: Path) -> dict[str, str]:
    """Return a SHA-256 of each file of a run, by its path in the folder, but for the validation itself."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / VALIDATION
    }


def _seal(content: Mapping[str, Any]) -> str:
    """Return a keyed hash: only this user's own validations have it, so a hand cannot write another."""
    text = json.dumps(content, sort_keys=True)
    return hmac.new(_key(), text.encode(), hashlib.sha256).hexdigest()


def _key() -> bytes:
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    file = Path(home) / "prunegym" / "validation-key"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f"{file.name}.{os.getpid()}")
        new.touch(mode=0o600)
        new.write_text(secrets.token_hex(32))
        try:
            os.link(new, file)  # fails if another process was faster; its key counts
        except FileExistsError:
            pass
        finally:
            new.unlink()
    return file.read_bytes()


def _checked(record: Record, trust_code: bool, device: str) -> Validation:
    claimed, cell = record.result, record.cell
    model = open_cell(record, device)
    dataset = model.data["evaluated"]
    agent = saved_agent(record, trust_code)
    dense = None if cell.get("dense") is None else read_model(cell["dense"]).masked.network
    dataset = answered(model.info.adapt(dataset), model.masked if dense is None else dense)
    problems = [f"{name} are others than the run's" for name in _other_inputs(record, model, dataset)]
    run, here = _run_of(record), machine()
    with _threads(run.get("threads")):
        found = evaluate(
            agent, model, model.data["evaluated"], penalty=record.penalty, dense=dense, device=device,
            options=PredictorOptions(train=model.data["train"]),
        )  # fmt: skip
    own = task_reward(record, model, found.masks, found.logits)
    now = Result.of(found, own)
    exact = all(run.get(key) == here.get(key) for key in SAME_MACHINE)
    other = 1.0
    if claimed.masks is not None and now.masks is not None and claimed.masks.shape == now.masks.shape:
        other = torch.ne(claimed.masks, now.masks).any(1).double().mean().item()
    most = 0.0 if exact else MOST_OTHER_MASKS
    if other > most:
        problems.append(f"{other:.2%} of the images have another mask; at most {most:.2%} may")
    problems += _inconsistent(claimed, record.penalty)
    for key in sorted({*claimed.figures, *now.figures}):
        before, after = claimed.figures.get(key), now.figures.get(key)
        if not _close(before, after, 0.0 if exact else _tolerance(key, record, len(dataset))):
            problems.append(f"{key} is {before}, and {after} now")
    if exact and not torch.equal(claimed.correct, now.correct):
        problems.append("other images are answered correctly")
    if claimed.is_static != now.is_static and exact:
        problems.append(f"static is {claimed.is_static}, and {now.is_static} now")
    return Validation(str(record.file), not problems, exact, tuple(problems), now.figures, other)


def _close(claimed: Any, now: Any, tolerance: float) -> bool:
    if not isinstance(claimed, int | float) or not isinstance(now, int | float):
        return False
    return abs(claimed - now) <= max(tolerance, EXACT)


def _tolerance(key: str, record: Record, images: int) -> float:
    """Return what a figure may differ by on another machine."""
    if key == "distinct_masks":
        return MOST_OTHER_MASKS * images
    if key in ("images", "policy_mac_share"):
        return 0.0
    if key in ("mac_share", "total_mac_share", "mac_share_std", "kept_share"):
        return MOST_OTHER_MACS
    if key == "reward":
        return MOST_OTHER_MASKS + record.penalty * MOST_OTHER_MACS
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


@contextlib.contextmanager
def _threads(count: Any) -> Iterator[None]:
    """Use as many threads as the run did: the order of a sum, and so its last bit, may depend on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count if isinstance(count, int) and 0 < count <= MAX_THREADS else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_of(record: Record) -> Mapping[str, Any]:
    try:
        found = read_json(record.folder / "run.json", "record of a run")["machine"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _other_inputs(record: Record, model: Bundle, dataset: Any) -> list[str]:
    """Return which inputs have other hashes than the run's."""
    claimed = record.configuration or {}
    now = {"model": fingerprint(model.masked), "dataset": fingerprint(dataset)}
    return [name for name, mark in now.items() if claimed.get(name) not in (None, mark)]
