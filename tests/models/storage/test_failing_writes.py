"""Writes that fail, folders without permission, two processes in one folder: nothing is lost, and errors say why."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from prunegym.errors import InvalidInputError
from prunegym.models.data.files.image_folders import image_folder
from prunegym.models.dynamic_cnn import DynamicCNN, shipped_model
from prunegym.models.storage.run_folder import begin_run, finish_run
from prunegym.models.storage.run_state import save_state
from prunegym.models.storage.weights import save_text
from tests.damage import in_little_memory

NOBODY = 65534


def _child(use: Callable[[], object], prepare: Callable[[], object]) -> str:
    """Prepare a child and use something in it; return the error, or "read" if there is none."""

    def both() -> None:
        prepare()
        use()

    return in_little_memory(both, more=4 << 30)


def _full_disk() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


@pytest.mark.parametrize("kind", ["model", "state", "text"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("run.json" if kind == "text" else "file.safetensors")
    write: dict[str, Callable[[], object]] = {
        "model": lambda: shipped_model().save(path),
        "state": lambda: save_state(path, {"weights": torch.zeros(10_000)}),
        "text": lambda: save_text(path, "x" * 10_000),
    }
    path.write_bytes(b"the old one")
    said = _child(write[kind], _full_disk)
    assert said == f"OSError: [Errno 27] File too large: '{path}'"
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]
    write[kind]()
    assert path.stat().st_size > 4096
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_without_permission(tmp_path: Path) -> None:
    for above in (tmp_path, *tmp_path.parents):
        if not above.stat().st_mode & 0o001:  # pytest's own folders are private
            above.chmod(0o755)
    for part in ("train", "test"):
        for label in "ab":
            (tmp_path / "set" / part / label).mkdir(parents=True)
            for number in range(6):
                Image.new("L", (8, 8), number).save(tmp_path / "set" / part / label / f"{number}.png")
    become = lambda: os.setuid(NOBODY)  # noqa: E731
    assert _child(lambda: image_folder(tmp_path / "set"), become) == "read"
    (tmp_path / "set/train/b").chmod(0o700)
    said = _child(lambda: image_folder(tmp_path / "set"), become)
    assert f"The folder {tmp_path}/set/train/b cannot be read (Permission denied)" in said  # not a class less
    path = tmp_path / "model.safetensors"
    shipped_model().save(path)
    whole = path.read_bytes()
    denied = f"PermissionError: [Errno 13] Permission denied: '{path}'"
    assert _child(lambda: shipped_model().save(path), become) == denied
    assert path.read_bytes() == whole
    path.chmod(0o600)
    assert "Permission denied" in _child(lambda: DynamicCNN.load(path), become)  # not "no such file"


HOLDER = """
import sys, time
from pathlib import Path
from prunegym.models.storage.run_folder import begin_run
begin_run(Path(sys.argv[1]), {"seed": 0}, resume=True)
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_ends_in_any_way(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InvalidInputError, match=r"is in use by another process, which is still running\. Wait for"):
            begin_run(tmp_path, {"seed": 0}, resume=True)
        holder.kill()
        holder.wait()
    begin_run(tmp_path, {"seed": 0}, resume=True)
    begin_run(tmp_path, {"seed": 0}, resume=True)  # the same process may go on, e.g. after an error
    assert _child(lambda: begin_run(tmp_path / "other", {"seed": 0}, resume=True), lambda: None) == "read"
    finish_run(tmp_path, 1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run.json"]


def test_a_finished_run_is_not_held(tmp_path: Path) -> None:
    begin_run(tmp_path, {"seed": 0}, resume=False)
    finish_run(tmp_path, 1.0)
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        other.kill()
