"""The commands, as a user calls them."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.agents.benchmark.tiny import SETTINGS
from tests.commands.command_line import as_json, fail, run, succeed

RUNS = "digits/lambda-0.2/runs"


def test_benchmark_reads_finished_cells_and_prints_tables(copied, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SETTINGS))
    assert "Add --resume" in fail("benchmark", tmp_path / "tiny.yaml", "--out", copied)
    arguments = ["benchmark", tmp_path / "tiny.yaml", "--out", copied, "--resume", "--quiet"]
    document = as_json(*arguments)
    assert (document["finished"], document["failed"]) == (10, {})
    assert list(document["tables"]) == ["digits, lambda-0.2, test", "digits, lambda-0.5, test"]
    text = succeed(*arguments).stdout
    assert "outcome" in text
    assert "10 cells are finished, 0 failed." in text


def test_validate_and_leaderboard_catch_an_edited_figure(copied):
    assert as_json("validate", copied / RUNS / "start-seed0", copied / RUNS / "random-seed0")["valid"]
    assert [row["name"] for row in as_json("leaderboard", copied)["boards"]["digits, lambda-0.2, test"]] == [
        "start", "random",
    ]  # fmt: skip
    file = copied / RUNS / "random-seed0/result-test.json"
    content = json.loads(file.read_text())
    content["result"]["figures"]["reward"] = 0.99
    file.write_text(json.dumps(content))
    board = as_json("leaderboard", copied)
    assert [row["name"] for row in board["boards"]["digits, lambda-0.2, test"]] == ["start"]
    assert "result-test.json" in board["left_out"][str(copied / RUNS / "random-seed0")]
    result = run("validate", copied / RUNS / "random-seed0")
    assert result.exit_code == 1
    assert "reward is 0.99" in result.stdout


def test_a_comparison_is_validated_and_reported_as_a_suite_is(tmp_path):
    out = tmp_path / "compare"
    options = ["--images", "50", "--seeds", "1", "--target-macs", "0.5", "--quiet", "--out", out]
    document = as_json("compare", "random", "l1", *options)
    assert document["rows"][0]["outcome"] == ""
    assert as_json("validate", out)["valid"]
    (board,) = as_json("leaderboard", out)["boards"].values()
    assert {row["name"] for row in board} == {"random", "l1"}


def test_report_and_merge(copied, tmp_path):
    pytest.importorskip("plotly")
    pytest.importorskip("rliable")
    files = as_json("report", copied, "--no-times", "--no-images", "--title", "Mine & yours")
    page = (copied / "report/report.html").read_text()
    assert "<h1>Mine &amp; yours</h1>" in page
    assert '"galleries": []' in page
    assert files["table"] == str(copied / "report/table.csv")
    assert as_json("merge", copied, "--out", tmp_path / "all")["cells"] == 10
