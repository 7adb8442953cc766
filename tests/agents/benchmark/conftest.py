"""One small benchmark that the tests look at or copy: two seeds, two lambdas, digits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prunegym.agents.benchmark.report.page import write_report
from prunegym.agents.benchmark.running import Benchmark, run_suite
from tests.agents.benchmark.tiny import SUITE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the small benchmark are slow, since each process that runs some has to make it first."""
    for item in items:
        # The hook sees the tests of other folders too, which have other fixtures of this name.
        if item.path.parent == Path(__file__).parent and "made" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def own_key(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Validations of tests are sealed with a key of their own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Benchmark]:
    """The folder and what was found; do not change it."""
    folder = tmp_path_factory.mktemp("benchmark")
    return folder, run_suite(SUITE, folder)


@pytest.fixture
def copied(made: tuple[Path, Benchmark], tmp_path: Path) -> Path:
    """A copy of the folder, to change."""
    return Path(shutil.copytree(made[0], tmp_path / "copy"))


@pytest.fixture(scope="session")
def written(made: tuple[Path, Benchmark], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of its report."""
    return write_report([made[0]], tmp_path_factory.mktemp("report"))
