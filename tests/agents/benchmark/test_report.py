"""The report: statistics against formulas, CSV against the table, images in the order of their MACs."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import trim_mean

from prunegym import evaluate, load_dataset, shipped_model
from prunegym.agents.benchmark.records import comparisons, read_records
from prunegym.agents.benchmark.report.gallery import gallery
from prunegym.agents.benchmark.report.page import quantiles, write_report
from prunegym.agents.benchmark.report.statistics import scores_of, summary
from prunegym.agents.comparison.results import Interval, interval
from prunegym.agents.comparison.table import outcome_of
from prunegym.errors import MissingDataError

pytest.importorskip("plotly")


def test_the_page_is_whole_and_not_too_large(written):
    text = written["page"].read_text()
    assert written["page"].stat().st_size < 15_000_000
    assert text.count("plotly.js v") == 1
    assert not re.search(r'<(?:link|script|img)[^>]+(?:src|href)="http', text)


def test_files_have_the_figures_of_the_table(made, written):
    with written["table"].open() as file:
        rows = list(csv.DictReader(file))
    expected = [(where, row) for where, table in made[1].tables.items() for row in table.rows]
    found = json.loads(written["tables"].read_text())["tables"]
    assert found == {", ".join(where): table.as_json() for where, table in made[1].tables.items()}
    assert len(rows) == len(expected) == 6
    for line, (where, row) in zip(rows, expected, strict=True):
        assert (line["task"], line["point"], line["agent"]) == (where.task, where.point, row.name)
        assert float(line["accuracy"]) == row.figures["accuracy"].mean
        assert float(line["milliseconds"]) > 0
        gap = row.reward_difference
        assert line["difference"] == ("" if gap is None else str(gap.mean))
    with written["curves"].open() as file:
        curves = list(csv.DictReader(file))
    monitor = json.loads((made[0] / "digits/lambda-0.2/runs/ppo-seed0/monitor.json").read_text())["history"]
    own = [line for line in curves if (line["point"], line["seed"]) == ("lambda-0.2", "0")]
    assert [float(line["reward"]) for line in own] == [row["reward"] for row in monitor]
    with Image.open(written["picture"]) as picture:
        assert picture.width > 600


def test_images_go_from_cheap_to_expensive_with_true_predictions(made):
    (record,) = (one for one in read_records([made[0]]) if (one.agent, one.where.point) == ("start", "lambda-0.2"))
    shown = gallery(record, images=12)
    macs = [one["macs"] for one in shown["images"]]
    assert macs == sorted(macs)
    model, test = shipped_model("digits"), load_dataset("digits", "test")
    found = evaluate(model, None, test)
    dense = model.masked(test.batch(torch.arange(len(test)))).argmax(1)
    for one in shown["images"]:
        bits = torch.tensor([int(bit) for bit in "".join(one["mask"])], dtype=torch.bool)
        same = (found.masks == bits).all(1) & torch.isclose(found.total_mac_shares, torch.tensor(one["macs"]).double())
        answers = {
            (test.classes[dense[k]], test.classes[found.logits[k].argmax()]) for k in same.nonzero()[:, 0].tolist()
        }
        assert (one["dense"], one["masked"]) in answers
    assert macs[0] == pytest.approx(found.total_mac_shares.min().item())
    assert macs[-1] == pytest.approx(found.total_mac_shares.max().item())


@pytest.mark.filterwarnings("ignore")  # of packages that rliable imports
def test_statistics_are_those_of_the_formulas(made):
    pytest.importorskip("rliable")
    tables = made[1].tables
    scores, found = scores_of(tables), summary(tables, reps=200)
    assert scores["PPO"].shape == scores["random"].shape == (2, 2)
    assert scores["start"].shape == (1, 2)
    for name, own in scores.items():
        mean, low, high = found["iqm"][name]
        assert mean == pytest.approx(trim_mean(own, 0.25, axis=None))
        if len(own) > 1:
            assert low <= mean <= high
        else:  # one run of each task has no spread
            assert low is high is None
    pairs = [
        np.mean([(x > y) + 0.5 * (x == y) for x, y in itertools.product(scores["random"][:, k], scores["PPO"][:, k])])
        for k in range(2)
    ]
    assert found["improvement"]["random"][0] == pytest.approx(np.mean(pairs))
    assert found["improvement"]["start"][1:] == [None, None]
    level = found["levels"][20]
    assert found["profile"]["PPO"][20] == np.mean(scores["PPO"] > level)
    for table, place in zip(tables.values(), range(2), strict=True):
        means = [row.figures["reward"].mean for row in table.rows]
        best = max(table.rows, key=lambda row: row.figures["reward"].mean)
        assert scores[best.name][:, place].mean() == pytest.approx(1)
        lowest = min(zip(means, table.rows, strict=True), key=lambda pair: pair[0])[1]
        assert scores[lowest.name][:, place].mean() == pytest.approx(0)


def test_statistics_use_the_seeds_that_all_tasks_have(made):
    tables = dict(made[1].tables)
    where, table = list(tables.items())[-1]
    rows = tuple(
        dataclasses.replace(row, results={1: row.results[1]} if row.name == "PPO" else row.results)
        for row in table.rows
        if row.name != "start"
    )
    whole, part = scores_of(tables), scores_of({**tables, where: dataclasses.replace(table, rows=rows)})
    assert part.keys() == {"PPO", "random"}
    assert part["PPO"].shape == (1, 2)
    assert part["PPO"][0, 0] == whole["PPO"][1, 0]


def test_a_difference_inside_its_interval_is_a_tie():
    def outcome(images, seeds, own=None):
        return outcome_of(
            {"reward_difference": images, "reward_difference_over_seeds": seeds, "task_reward_difference": own}
        )

    sure, unsure, worse = Interval(0.1, 0.05, 9), Interval(0.1, 0.2, 9), Interval(-0.1, 0.05, 9)
    assert outcome(sure, sure) == "better"
    assert outcome(worse, worse) == "worse"
    assert outcome(sure, unsure) == outcome(unsure, sure) == "tie"
    assert outcome(sure, Interval(0.1, None, 1)) == "better"  # one seed: what counts is the interval over images
    assert outcome(worse, worse, sure) == "better"  # the task's own reward counts
    assert outcome(sure, sure, Interval(0.1, None, 1)) == "tie"
    assert outcome(None, None) == ""


def test_quantiles_give_the_intervals_of_tables():
    values = [0.3, 0.5, 0.4, 0.8]
    assert quantiles()[3] * np.std(values, ddof=1) / 2 == pytest.approx(interval(values).half_width)


def test_tables_are_read_from_folders_as_they_were_found(made):
    again = comparisons(read_records([made[0]]))
    assert {where: table.as_json() for where, table in again.items()} == {
        where: table.as_json() for where, table in made[1].tables.items()
    }


def test_a_folder_without_results_is_told(tmp_path):
    with pytest.raises(MissingDataError, match="There are no results"):
        write_report([tmp_path], tmp_path / "report")
    with pytest.raises(MissingDataError, match="There is no folder"):
        write_report([tmp_path / "none"], tmp_path / "report")
