"""Folders of runs: ``run.json`` records how a run was made, so that you can repeat or resume it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunegym.errors import InvalidInputError
from prunegym.models import kernel
from prunegym.models.data.dataset import Dataset
from prunegym.models.data.files.bounded_files import read_json
from prunegym.models.storage.weights import fingerprint_of, save_text

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

PACKAGES = ("prunegym", "torch", "gymnasium", "stable-baselines3", "numpy")
_HELD: dict[Path, int] = {}
"""Folders that this process has locked, with the file descriptor of each lock."""
SHOWN = 4
"""Number of changed settings that a message names."""


def begin_run(
    out: Path, settings: Mapping[str, Any], resume: bool, inputs: Mapping[str, nn.Module | Dataset | None] | None = None
) -> None:
    """Record the settings of a run in ``run.json``, or check that a run in the folder is the same and may be resumed.

    Args:
        out: Folder of the run; created if needed.
        settings: Everything that the result depends on, as plain JSON.
        resume: Whether the folder may have this run already.
        inputs: Networks and data sets by name, whose hashes are stored; None for an absent one.

    Raises:
        InvalidInputError: If the folder has another run, has this one and ``resume`` is False, or is in use by another
            process. It is locked until :func:`finish_run`.
    """
    path = out / "run.json"
    settings = json.loads(json.dumps(settings))
    hashes = {name: None if thing is None else fingerprint_of(thing) for name, thing in (inputs or {}).items()}
    if path.exists():
        run = _read(path)
        before, now = (_flat(without_unused(one)) for one in (_group(run, "settings"), settings))
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if changed:
            shown = [f"{key}: {_shown(before.get(key))}, not {_shown(now.get(key))}" for key in changed[:SHOWN]]
            more = f"; {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            raise InvalidInputError(
                f"{out} has a run with other settings ({'; '.join(shown)}{more}). Give another folder (--out), or the "
                "same settings."
            )
        made_from = _group(run, "inputs")
        other = [name for name in hashes if name in made_from and made_from[name] != hashes[name]]
        if other:
            raise InvalidInputError(
                f"{out} has a run with other inputs ({', '.join(other)}). Give another folder (--out), or the inputs "
                "of that run."
            )
        if not resume:
            raise InvalidInputError(f"{out} has this run already. Add --resume, or give another folder (--out).")
        _hold(out)
        return
    make_folder(out)
    _hold(out)
    seed = settings.get("seed")
    run = {
        "settings": settings, "inputs": hashes, "command": command_line(), "seed": seed, "versions": versions(),
        "machine": machine(),
    }  # fmt: skip
    save_text(path, json.dumps(run, indent=1) + "\n")


def make_folder(out: Path) -> None:
    """Make a folder for results.

    Raises:
        InvalidInputError: If the folder cannot be created, e.g. because a file has its name.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"Folder {out} cannot be created ({error.strerror}). Give another (--out).") from error


def without_unused(settings: Any) -> Any:
    """Return plain JSON without the keys whose value is null or false, at any depth.

    Settings are compared in this form, so a newer option that is not used does not make old runs different.

    Example:
        >>> without_unused({"seed": 0, "tune": {"epochs": 8, "augment": False, "sparsity": None}})
        {'seed': 0, 'tune': {'epochs': 8}}
    """
    if isinstance(settings, Mapping):
        return {
            key: without_unused(value) for key, value in settings.items() if value is not None and value is not False
        }
    return [without_unused(value) for value in settings] if isinstance(settings, list | tuple) else settings


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings by names with dots, such as ``recipe.n_episodes``."""
    if not isinstance(settings, Mapping):
        return {prefix: settings}
    return {
        key: value
        for name, one in settings.items()
        for key, value in _flat(one, f"{prefix}.{name}" if prefix else name).items()
    }


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value)


def finish_run(out: Path, seconds: float, results: Mapping[str, Any] | None = None) -> None:
    """Add a run's results and its time, summed over resumed parts, to ``run.json``.

    Args:
        out: Folder of the run.
        seconds: Time of this part.
        results: Results as plain JSON.
    """
    path = out / "run.json"
    run = _read(path)
    before = run.get("seconds")
    run["seconds"] = round((before if isinstance(before, int | float) else 0.0) + seconds, 1)
    if results is not None:
        run["results"] = dict(results)
    save_text(path, json.dumps(run, indent=1) + "\n")
    held = _HELD.pop(out.resolve(), None)
    if held is not None:
        os.close(held)


def _hold(out: Path) -> None:
    """Lock a folder until :func:`finish_run` or the end of this process."""
    if fcntl is None or out.resolve() in _HELD:
        return
    descriptor = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InvalidInputError(
            f"{out} is in use by another process, which is still running. Wait for it, or give another --out."
        ) from None
    except OSError:  # a file system without locks
        os.close(descriptor)
    else:
        _HELD[out.resolve()] = descriptor


def _group(run: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    group = run.get(name)
    return group if isinstance(group, Mapping) else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        run = read_json(path, "record of a run")
    except InvalidInputError:
        raise
    except ValueError as error:
        raise InvalidInputError(f"{path} is not JSON ({error}). Delete it, or choose another folder.") from error
    if not isinstance(run, dict):
        raise InvalidInputError(f"{path} does not describe a run. Delete it, or choose another folder.")
    return run


def command_line() -> str:
    """Return the running command, in a form that you can type again."""
    program = Path(sys.argv[0])
    own = program.name == "prunegym" or program.parts[-2:] == ("prunegym", "__main__.py")
    return shlex.join(["prunegym" if own else sys.argv[0], *sys.argv[1:]])


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that results depend on; None for missing packages."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, str | int]:
    """Describe the machine for measurements of time: processor, cores, threads, torch, the kernel, the GPU."""
    known: dict[str, str | int] = {
        "system": platform.platform(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernel": kernel.variants()[0] if kernel.available() else f"none: {kernel.unavailable_reason()}",
    }
    return known | {"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else known


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
