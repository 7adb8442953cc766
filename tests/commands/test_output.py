"""Tables at 80 columns: no line is longer, and no word or number is broken."""

from __future__ import annotations

import pytest

from prunegym.commands.output import Facts, Table, emit, fold

LONG = "runs/cifar10-jpeg/prepared-50-seeds/runs/prepared-with-a-long-name-seed0/model.safetensors"
COLUMNS = ["agent", "accuracy", "channels kept", "total MACs", "static", "shuffled", "reward", "difference", "seeds"]


def table(names: list[str], cell: str) -> Table:
    return Table("results", COLUMNS, [[name, *[cell] * 8] for name in names], "what each column means. " * 8)


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("cell", ["98.83", "98.83 +-0.37", "0.7613 +-0.0021"])
@pytest.mark.parametrize("names", [["L1"], ["L1", LONG], [LONG, "gates before PPO", "L1"]])
def test_a_table_fits(names: list[str], cell: str, width: int) -> None:
    made = table(names, cell)
    lines = made.lines(width)
    # What has neither spaces nor slashes cannot be broken.
    assert max(map(len, lines)) <= max(width, len("prepared-with-a-long-name-seed0/"))
    shown = "\n".join(lines)
    assert shown.count(cell) == 8 * len(names)
    for head in {word for column in COLUMNS for word in column.split()}:
        assert head in shown
    assert LONG not in names or LONG in shown.replace("\n", "")


def test_a_table_that_fits_has_one_line_for_each_row() -> None:
    lines = Table("t", ["a", "b"], [["x", "1"], ["y", "22"]]).lines(80)
    assert lines == ["a   b", "-----", "x   1", "y  22"]
    assert Table("t", ["a", "b"], []).lines(80) == ["a  b", "----"]


def test_a_piped_table_keeps_its_columns() -> None:
    lines = table([LONG, "L1"], "0.7613 +-0.0021").lines(None)
    assert lines[0].split()[:3] == ["agent", "accuracy", "channels"]
    assert all(line.count("+-") == 8 for line in lines[2:4])


def test_facts_wrap_or_go_under_their_names() -> None:
    made = Facts("t", {"short": 1, "sentence": "several words " * 10, "path": LONG})
    lines = made.lines(60)
    assert max(map(len, lines)) <= 60
    assert lines[:2] == ["short     1", "sentence  several words several words several words several"]
    assert "".join(line.strip() for line in lines[lines.index("path") + 1 :]) == LONG
    assert len(made.lines(None)) == 3


def test_paths_break_after_slashes_only_where_they_must() -> None:
    assert fold("see /tmp/x/y and runs/a/b", 20) == ["see /tmp/x/y and", "runs/a/b"]
    assert fold("see /tmp/a-long-name/of-a-folder/x", 20) == ["see /tmp/", "a-long-name/", "of-a-folder/x"]


def test_names_with_control_characters_and_without_an_encoding(capsys: pytest.CaptureFixture[str]) -> None:
    names = "\x1b[31mred", "\ud800", "\x07", "ä"
    emit({}, False, Table("which", ["name", "share"], [[name, "1"] for name in names]), *names)
    said = capsys.readouterr().out
    for shown in (r"\x1b[31mred", r"\ud800", r"\x07", "ä"):
        assert said.count(shown) == 2
    assert "\x1b[31m" not in said.replace("\x1b[1mwhich", "")
