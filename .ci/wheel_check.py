"""Checks of the built wheel, each run inside the environment that it is about.

Usage:
    wheel_check.py files ROOT ARCHIVE...   every packaged file of the repository is in each archive
    wheel_check.py models                  prunegym.models works without gymnasium and stable-baselines3
    wheel_check.py kernel with|without      the compiled kernel is there or not, and skipping works either way
    wheel_check.py full                    import, command line and both environments work
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

ROOMS = ("envs", "agents", "models")
SUFFIXES = {".py", ".pyi", ".typed", ".yaml", ".json", ".safetensors", ".cpp", ".h", ".html", ".css", ".js"}
IDS = ("prunegym/ChannelMask-v0", "prunegym/LayerwiseChannelMask-v0")


def check_files(root: Path, archives: list[Path]) -> None:
    """Compare git's list of packaged files with what the archives hold, byte for byte."""
    listed = subprocess.run(["git", "ls-files", "src/prunegym", *ROOMS], cwd=root, check=True, capture_output=True)
    files = [Path(line) for line in listed.stdout.decode().splitlines()]
    files = [file for file in files if file.suffix in SUFFIXES and not (root / file).is_symlink()]
    names = {_packaged(str(file)): (root / file).read_bytes() for file in files}
    if not {"prunegym/py.typed", "prunegym/models/zoo/network_registry.py"} <= names.keys():
        raise SystemExit(f"git lists too few files to compare with: {sorted(names)}")
    for archive in archives:
        packed = _contents(archive)
        missing = sorted(name for name, data in names.items() if packed.get(name) != data)
        if missing:
            raise SystemExit(f"{archive.name} lacks, or has another version of: {', '.join(missing)}")
        print(f"{archive.name}: all {len(names)} packaged files")


def _contents(archive: Path) -> dict[str, bytes]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(archive) as sdist:
        members = {member.name: sdist.extractfile(member) for member in sdist if member.isfile()}
        return {_packaged(name.partition("/")[2]): stream.read() for name, stream in members.items() if stream}


def _packaged(path: str) -> str:
    """Return where a file of the repository is in the package."""
    return path.removeprefix("src/") if path.startswith("src/") else f"prunegym/{path}"


def check_models() -> None:
    """Run a network of the zoo on digits where gymnasium and stable-baselines3 are absent."""
    present = [name for name in ("gymnasium", "stable_baselines3") if importlib.util.find_spec(name)]
    if present:
        raise SystemExit(f"this environment has {present}, so it shows nothing")
    import prunegym.models
    from prunegym.models.data.dataset_registry import load_dataset
    from prunegym.models.training.cnn_training import TrainConfig, accuracy, train
    from prunegym.models.zoo.network_registry import build

    _check_installed(prunegym.models.__file__)
    training, test = load_dataset("digits"), load_dataset("digits", "test")
    channels, _, size = test.image_shape
    network = build("simple-cnn", num_classes=len(test.classes), in_channels=channels, image_size=size)
    share = accuracy(train(network, training, TrainConfig(epochs=10)), test)
    if share < 0.8:
        raise SystemExit(f"ten epochs on digits gave an accuracy of {share:.3f}; above 0.9 is usual")
    print(f"prunegym.models without gymnasium and stable-baselines3: digits accuracy {share:.3f}")


def check_kernel(expected: bool) -> None:
    """Skip channels of a network and compare with masking them."""
    import torch

    import prunegym.models
    from prunegym.models import MaskedCNN, SkippingCNN, build, kernel

    _check_installed(prunegym.models.__file__)
    if kernel.available() != expected:
        raise SystemExit(f"kernel.available() is {kernel.available()}: {kernel.unavailable_reason() or 'it was built'}")
    masked = MaskedCNN(build("resnet20"), torch.zeros(1, 3, 32, 32))
    images, mask = torch.rand(4, 3, 32, 32), torch.rand(4, masked.mask_size) < 0.5
    fast = SkippingCNN(masked)
    error = float((fast(images, mask).output - masked(images, mask)).abs().max())
    if ("kernel" in fast.available) != expected or not error < 1e-3:
        raise SystemExit(f"skipping: available {fast.available}, error {error:.1e}")
    print(f"{'With' if expected else 'Without'} the kernel: {fast.choices[-1].reason}")


def check_full() -> None:
    """Import the package, call the installed command and step through both environments."""
    import gymnasium

    import prunegym

    _check_installed(prunegym.__file__)
    command = Path(sysconfig.get_path("scripts")) / "prunegym"
    shown = subprocess.run([command, "--help"], check=True, capture_output=True, text=True).stdout
    if "evaluate" not in shown:
        raise SystemExit(f"prunegym --help does not name its commands:\n{shown}")
    for name in IDS:
        env = gymnasium.make(name)
        env.reset(seed=0)
        env.action_space.seed(0)
        ended = False
        while not ended:
            _, _, terminated, truncated, info = env.step(env.action_space.sample())
            ended = terminated or truncated
        print(f"{name}: one episode, mac_share {info['mac_share']:.3f}")
        env.close()


def _check_installed(file: str | None) -> None:
    if file is None or Path(sysconfig.get_path("purelib")) not in Path(file).parents:
        raise SystemExit(f"prunegym is imported from {file}, not from the installed wheel")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["files", root, *archives] if archives:
            check_files(Path(root), [Path(archive) for archive in archives])
        case ["models"]:
            check_models()
        case ["kernel", "with" | "without" as kernel]:
            check_kernel(kernel == "with")
        case ["full"]:
            check_full()
        case _:
            raise SystemExit(__doc__)
