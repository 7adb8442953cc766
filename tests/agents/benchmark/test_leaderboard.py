"""The leaderboard's order, on results with known figures."""

from __future__ import annotations

import pytest
import torch

from prunegym.agents.benchmark.validation import leaderboard as module
from prunegym.agents.comparison.results import Result
from prunegym.agents.evaluation.evaluator import JSON_KEYS

IMAGES = 100


def save(root, agent, seed, accuracy):
    correct = torch.arange(IMAGES) < round(accuracy * IMAGES)
    figures = dict.fromkeys(JSON_KEYS, 0.0) | {"images": IMAGES, "accuracy": accuracy, "reward": accuracy}
    folder = root / f"{agent}-seed{seed}"
    folder.mkdir(parents=True)
    cell = {"agent": agent, "seed": seed, "each": True, "penalty": 0.0, "task": "t", "reference": "A"}
    result = Result(figures, False, "", (), correct, torch.zeros(IMAGES))
    result.save(folder / "result-test.json", {"dataset": "x"}, cell)


def test_the_order_and_the_figures_are_over_all_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "why_left_out", lambda _records: {})
    for agent, seed, accuracy in (("B", 0, 0.8), ("B", 1, 0.4), ("A", 0, 0.7)):
        save(tmp_path, agent, seed, accuracy)
    (board,), left_out = module.leaderboard([tmp_path])
    assert left_out == {}
    # A has 0.7; B has (0.8 + 0.4) / 2 = 0.6, though it is better with the one seed that both have.
    assert [(row.name, row.outcome) for row in board.rows] == [("A", ""), ("B", "better")]
    assert [module.rank(row).mean for row in board.rows] == pytest.approx([0.7, 0.6])
    assert [len(row.results) for row in board.rows] == [1, 2]
    assert board.rows[1].reward_difference.mean == pytest.approx(0.1)
