"""Results that can be checked: the saved agent is evaluated again, and compared with what the run claims."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunegym.agents.benchmark.records import RESULTS, Record, read_record
from prunegym.agents.benchmark.validation.agreement import Again, differences, other_masks
from prunegym.agents.benchmark.validation.identity import contradictions, copies, run_of
from prunegym.agents.benchmark.validation.reopening import open_cell, saved_agent, task_reward
from prunegym.agents.comparison.results import Result, fingerprint
from prunegym.agents.evaluation.evaluator import Evaluation, evaluate
from prunegym.agents.evaluation.masks import Agent, derangement
from prunegym.agents.evaluation.predictors import PredictorOptions
from prunegym.errors import MissingDataError, PruneGymError
from prunegym.models.catalog import Model
from prunegym.models.data.dataset import Dataset
from prunegym.models.data.files.bounded_files import read_json
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.kernel.shared_library import MAX_THREADS
from prunegym.models.storage.model_file import Bundle, read_model
from prunegym.models.storage.run_folder import machine
from prunegym.models.storage.weights import save_text
from prunegym.models.training.cnn_training import answered

VALIDATION = "validation.json"
SAME_MACHINE = ("system", "processor", "instructions", "torch", "kernel")


@dataclasses.dataclass(frozen=True)
class Validation:
    """Whether a run's result holds.

    Attributes:
        file: The result.
        valid: Whether it does.
        exact: Whether this machine and torch are those of the run, so that every mask must be the same.
        problems: What differs.
        figures: Those of the evaluation made now; empty if the run cannot be opened.
        other_masks: Share of images with another mask than the run claims; None if the run cannot be opened.
    """

    file: str
    valid: bool
    exact: bool
    problems: tuple[str, ...]
    figures: Mapping[str, float]
    other_masks: float | None


def validate(run: Path | str, *, trust_code: bool = False, device: str = "cpu", store: bool = True) -> list[Validation]:
    """Evaluate the saved agent of a run again, execution ``masked``, and compare with each result in its folder.

    On the machine and torch of the run, all masks, answers, figures, the verdict and the notes must be equal. Elsewhere
    at most 0.5 % of the images may have another mask, and as many another answer; MACs may differ by 0.002, and the
    verdict must be one that so many other answers can give. The MACs of each image must be those of its mask. Agent,
    seed, lambda and reward must be those of the configuration, of ``run.json`` and of the folder's name.

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


def validate_all(folders: Iterable[Path], *, trust_code: bool = False, device: str = "cpu") -> list[Validation]:
    """Validate several runs, see :func:`validate`. A run that cannot be opened is not valid.

    Two seeds of an agent that learns must not have the same weights. Then neither is valid, since nothing says which
    one is the copy.
    """
    found: list[Validation] = []
    for folder in folders:
        try:
            found += validate(folder, trust_code=trust_code, device=device)
        except PruneGymError as error:  # a stored validation stays: perhaps only the images are not there
            files = sorted(folder.glob(RESULTS))
            found += [Validation(str(file), False, False, (str(error),), {}, None) for file in files]
    why = copies(read_record(Path(one.file)) for one in found if one.valid)
    for folder in why:
        (folder / VALIDATION).unlink(missing_ok=True)
    return [_with_problem(one, why.get(Path(one.file).parent)) for one in found]


def _with_problem(one: Validation, problem: str | None) -> Validation:
    return one if problem is None else dataclasses.replace(one, valid=False, problems=(*one.problems, problem))


def why_left_out(records: Iterable[Record]) -> dict[Path, str]:
    """Return the folders of runs that do not count here, and why: no stored validation that counts, or a copy."""
    known = list(records)
    reasons = {folder: why_not_trusted(folder) for folder in dict.fromkeys(record.folder for record in known)}
    trusted = [record for record in known if reasons[record.folder] is None]
    return {folder: reason for folder, reason in reasons.items() if reason is not None} | copies(trusted)


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
    model = open_cell(record, device)
    dataset = model.data["evaluated"]
    agent = saved_agent(record, trust_code)
    dense = None if record.cell.get("dense") is None else read_model(record.cell["dense"]).masked.network
    dataset = answered(model.info.adapt(dataset), model.masked if dense is None else dense)
    problems = contradictions(record)
    problems += [f"{name} are others than the run's" for name in _other_inputs(record, model, dataset, dense)]
    run, here = run_of(record).get("machine"), machine()
    run = run if isinstance(run, Mapping) else {}

    def evaluated(agent: Agent, owner: Model) -> Evaluation:
        return evaluate(
            agent, owner, model.data["evaluated"], penalty=record.penalty, dense=dense, device=device,
            options=PredictorOptions(train=model.data["train"]),
        )  # fmt: skip

    with _threads(run.get("threads")):
        found = evaluated(agent, model)
        owner = agent if isinstance(agent, DynamicCNN) else model
        now = Again(
            found,
            Result.of(found, task_reward(record, model, found.masks, found.logits)),
            owner.masked,
            all(run.get(key) == here.get(key) for key in SAME_MACHINE),
            lambda: evaluated(found.masks[derangement(len(found.masks))], owner).correct,
        )
        problems += differences(record.result, now, record.penalty)
    other = other_masks(record.result, now.result)
    return Validation(str(record.file), not problems, now.exact, tuple(problems), now.result.figures, other)


@contextlib.contextmanager
def _threads(count: Any) -> Iterator[None]:
    """Use as many threads as the run did: the order of a sum, and so its last bit, may depend on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count if isinstance(count, int) and 0 < count <= MAX_THREADS else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _other_inputs(record: Record, model: Bundle, dataset: Dataset, dense: nn.Module | None) -> list[str]:
    """Return which inputs have other hashes than the run's."""
    claimed = record.configuration or {}
    now = {"model": fingerprint(model.masked), "dataset": fingerprint(dataset), "dense": fingerprint(dense)}
    return [name for name, mark in now.items() if claimed.get(name) not in (None, mark)]
