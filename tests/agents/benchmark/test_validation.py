"""Figures and stored validations that were edited by hand are caught."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from prunegym.agents.benchmark.records import comparisons, read_record, read_records
from prunegym.agents.benchmark.validation.leaderboard import leaderboard
from prunegym.agents.benchmark.validation.validating import VALIDATION, hashes_of, validate, why_not_trusted
from prunegym.agents.comparison.results import Result
from prunegym.errors import InvalidInputError, MissingDataError
from prunegym.models.dynamic_cnn import DynamicCNN

RUNS = "digits/lambda-0.2/runs"


@pytest.fixture
def run(copied):
    return copied / RUNS / "ppo-seed0"


def edit(run, change):
    """Change the stored JSON of a run's result by hand."""
    file = run / "result-test.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def rewrite(run, **changes):
    """Replace parts of a run's result, with figures that go with them: a careful forgery."""
    record = read_record(run / "result-test.json")
    old = record.result
    correct, shares = changes.get("correct", old.correct), changes.get("total_mac_shares", old.total_mac_shares)
    figures = old.figures | {
        "accuracy": correct.double().mean().item(),
        "total_mac_share": shares.double().mean().item(),
        "reward": (correct.double() - 0.2 * shares.double()).mean().item(),
    }
    result = Result(figures, old.is_static, old.verdict, old.notes, correct, shares, changes.get("masks", old.masks))
    result.save(record.file, dict(record.configuration), record.cell)


def test_runs_of_every_kind_are_valid(copied):
    for name in ("ppo-seed0", "random-seed1", "start-seed0"):
        (found,) = validate(copied / RUNS / name)
        assert (found.valid, found.exact, found.problems, found.other_masks) == (True, True, (), 0.0)
        assert why_not_trusted(copied / RUNS / name) is None


@pytest.mark.parametrize("figure", ["accuracy", "total_mac_share", "static_accuracy", "reward", "distinct_masks"])
def test_a_figure_that_was_edited_is_caught(run, figure):
    validate(run)
    edit(
        run, lambda content: content["result"]["figures"].update({figure: content["result"]["figures"][figure] * 1.01})
    )
    (found,) = validate(run)
    assert not found.valid
    assert any(problem.startswith(f"{figure} is ") for problem in found.problems)
    assert not (run / VALIDATION).exists()


def test_a_forgery_that_is_consistent_is_caught(run):
    right = torch.ones(600, dtype=torch.bool)
    rewrite(run, correct=right)
    (found,) = validate(run)
    assert "other images are answered correctly" in found.problems


def test_other_weights_than_the_runs_are_caught(copied):
    shutil.copy(copied / RUNS / "ppo-seed1/model.safetensors", copied / RUNS / "ppo-seed0/model.safetensors")
    (found,) = validate(copied / RUNS / "ppo-seed0")
    assert not found.valid
    assert found.other_masks > 0


def elsewhere(run):
    """Say that another machine made the run."""
    described = json.loads((run / "run.json").read_text())
    described["machine"]["processor"] = "another"
    (run / "run.json").write_text(json.dumps(described))


def test_elsewhere_few_masks_may_differ(run):
    record = read_record(run / "result-test.json")
    masks, policy = record.result.masks.clone(), record.result.figures["policy_mac_share"]
    cost = DynamicCNN.load(run / "model.safetensors").masked.cost
    masks[:3, 5] = ~masks[:3, 5]  # three images of 600: 0.50 %
    rewrite(run, masks=masks, total_mac_shares=(cost.mac_share(masks) + policy).float())
    (here,) = validate(run)
    assert (here.valid, here.exact) == (False, True)
    elsewhere(run)
    (there,) = validate(run)
    assert (there.valid, there.exact, there.problems) == (True, False, ())
    masks[3, 5] = ~masks[3, 5]
    rewrite(run, masks=masks)
    assert "0.67% of the images have another mask; at most 0.50% may" in validate(run)[0].problems


@pytest.mark.parametrize("away", [False, True])
def test_the_macs_of_each_image_are_those_of_its_mask(run, away):
    """The means of both forgeries are right, and intervals over images become narrow."""
    shares = read_record(run / "result-test.json").result.total_mac_shares
    if away:
        elsewhere(run)
    rewrite(run, total_mac_shares=torch.full_like(shares, shares.double().mean().item()))
    different = int((shares - shares.double().mean()).abs().gt(1e-5).sum())
    assert different > 500
    (found,) = validate(run)
    assert found.problems == (f"total_mac_shares of {different} images are not those of their masks",)
    rewrite(run, total_mac_shares=shares.flip(0))
    assert validate(run)[0].problems[0].startswith("total_mac_shares of ")


def test_elsewhere_few_answers_may_differ(run):
    elsewhere(run)
    old = read_record(run / "result-test.json").result.correct
    right = old.clone()
    right[torch.where(~old)[0][:3]] = True  # three images of 600 are just 0.5 %, and 595.0 / 600 - 592.0 / 600 is more
    assert right.double().mean() - old.double().mean() > 0.005
    rewrite(run, correct=right)
    assert validate(run)[0].problems == ()
    rewrite(run, correct=old.flip(0))  # accuracy and reward stay
    share = 100 * (old != old.flip(0)).double().mean()
    assert f"{share:.2f}% of the images are answered otherwise; at most 0.50% may" in validate(run)[0].problems


def test_words_that_were_edited_are_caught(run):
    verdict = read_record(run / "result-test.json").result.verdict
    edit(run, lambda content: content["result"].update(verdict=verdict.replace(" 3.", " 99.")))
    assert validate(run)[0].problems[0].startswith("verdict is 'The masks depend on the image")
    edit(run, lambda content: content["result"].update(verdict=verdict, notes=["Checked by hand."]))
    assert validate(run)[0].problems == ("notes are ['Checked by hand.'], and [] now",)
    earlier = verdict.replace("The masks depend on the image: those of", "Per input:").replace(
        "images lose", "images' masks lose"
    )
    edit(run, lambda content: content["result"].update(verdict=earlier, notes=[]))
    assert validate(run)[0].valid


LOSE = "The masks depend on the image: those of other images lose"


@pytest.mark.parametrize(
    ("name", "static", "verdict", "problem"),
    [
        ("ppo-seed0", False, f"{LOSE} 2.1 points, 3.3 standard errors.", None),
        ("ppo-seed0", False, f"{LOSE} 2.0 points, 99 standard errors.", "the verdict claims 99 standard errors"),
        ("ppo-seed0", True, f"{LOSE} 2.0 points, 3.2 standard errors.", "static is True, but the verdict is"),
        ("random-seed0", False, f"{LOSE} 9.0 points, 2.1 standard errors.", "static is False, and True now; rounding"),
    ],
)
def test_elsewhere_a_verdict_is_one_that_rounding_can_give(copied, name, static, verdict, problem):
    run = copied / RUNS / name
    elsewhere(run)
    edit(run, lambda content: content["result"].update(verdict=verdict, is_static=static))
    (found,) = validate(run)
    assert not found.exact
    assert found.valid == (problem is None)
    assert problem is None or any(one.startswith(problem) for one in found.problems)


def test_only_validated_runs_are_ranked(copied):
    boards, left_out = leaderboard([copied])
    assert (boards, len(left_out)) == ([], 10)
    for name in ("ppo-seed0", "ppo-seed1", "random-seed0"):
        validate(copied / RUNS / name)
    (board,), left_out = leaderboard([copied])
    assert [row.name for row in board.rows] == ["PPO", "random"]
    assert [row.outcome for row in board.rows] == ["", "worse"]
    assert [len(row.results) for row in board.rows] == [2, 1]
    assert left_out[str(copied / RUNS / "random-seed1")] == "it was not validated"
    means = [np.mean([one.figures["reward"] for one in row.results.values()]) for row in board.rows]
    assert [row.figures["reward"].mean for row in board.rows] == pytest.approx(means)
    assert means[0] > means[1]


def test_a_validation_counts_only_for_the_files_that_it_was_made_with(run):
    validate(run)
    edit(run, lambda content: content["result"]["figures"].update(accuracy=1.0))
    assert why_not_trusted(run) == "files changed after it was validated (result-test.json)"
    validate(run)
    assert why_not_trusted(run) == "it was not validated"


def test_a_file_that_is_added_or_removed_is_a_change(run):
    validate(run)
    (run / "more.txt").touch()
    assert "more.txt" in why_not_trusted(run)
    (run / "more.txt").unlink()
    assert why_not_trusted(run) is None
    (run / "monitor.json").unlink()
    assert "monitor.json" in why_not_trusted(run)


def test_a_stored_validation_that_was_edited_is_caught(run):
    """Also if the hashes in it fit a figure that was edited too."""
    validate(run)
    edit(run, lambda content: content["result"]["figures"].update(accuracy=1.0))
    stored = json.loads((run / VALIDATION).read_text())
    stored["files"] = hashes_of(run)
    assert stored["files"]["result-test.json"] == hashlib.sha256((run / "result-test.json").read_bytes()).hexdigest()
    (run / VALIDATION).write_text(json.dumps(stored))
    assert why_not_trusted(run) == "its validation.json was edited, or made by somebody else"
    (run / VALIDATION).write_text("[")
    assert why_not_trusted(run).startswith("its validation.json is damaged")


def test_a_validation_of_somebody_else_does_not_count(run, tmp_path, monkeypatch):
    validate(run)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert why_not_trusted(run) == "its validation.json was edited, or made by somebody else"


def test_a_folder_without_a_result_is_no_run(tmp_path):
    with pytest.raises(MissingDataError, match=r"has no result-\*\.json"):
        validate(tmp_path)


DAMAGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "accuracy of NaN": lambda result: result["figures"].update(accuracy=float("nan")),
    "no accuracy": lambda result: result["figures"].pop("accuracy"),
    "accuracy of text": lambda result: result["figures"].update(accuracy="0.9"),
    "no images": lambda result: result["figures"].update(images=0),
    "too few answers": lambda result: result.update(correct=""),
    "too few shares": lambda result: result.update(total_mac_shares="AAAA"),
    "another kind of static": lambda result: result.update(is_static="x"),
    "another kind of notes": lambda result: result.update(notes=[3]),
    "masks that expand": lambda result: result.update(masks=base64.b64encode(zlib.compress(bytes(64 << 20))).decode()),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_result_is_named(kind, run):
    edit(run, lambda content: DAMAGED[kind](content["result"]))
    with pytest.raises(InvalidInputError, match=r"result-test\.json is no result of this version, or it is damaged"):
        read_record(run / "result-test.json")


@pytest.mark.parametrize("content", ["[" * 100_000, "", None])
def test_a_damaged_record_of_a_run_does_not_end_validation(content, run):
    (run / "run.json").unlink()
    if content is None:
        os.mkfifo(run / "run.json")
    else:
        (run / "run.json").write_text(content)
    assert validate(run)[0].valid


def test_a_deleted_figure_is_named(run):
    edit(run, lambda content: content["result"]["figures"].pop("static_accuracy"))
    with pytest.raises(InvalidInputError, match=r"ppo-seed0/result-test\.json .*it has no figure static_accuracy"):
        read_record(run / "result-test.json")


def test_a_damaged_configuration_is_named(run):
    edit(run, lambda content: content.update(configuration="x"))
    with pytest.raises(InvalidInputError, match=r"damaged \(TypeError: its configuration is 'x'"):
        read_record(run / "result-test.json")


def test_a_reward_of_the_tasks_own_that_was_deleted_is_named(copied):
    for name in ("ppo-seed0", "ppo-seed1", "random-seed0"):
        edit(copied / RUNS / name, lambda content: content["result"]["figures"].update(task_reward=0.5))
    edit(copied / RUNS / "ppo-seed1", lambda content: content["result"]["figures"].pop("task_reward"))
    records = read_records([copied / RUNS / name for name in ("ppo-seed0", "ppo-seed1", "random-seed0")])
    with pytest.raises(InvalidInputError, match=r"ppo-seed1/result-test\.json .*another figure task_reward"):
        comparisons(records)
