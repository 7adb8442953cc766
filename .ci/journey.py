"""The journey of docs/your-data.md with the real torchvision and timm: its commands, copied from the page.

Usage: python .ci/journey.py [--images N] [--network NAME]... [--out FOLDER]

Makes JPEGs of mixed sizes and a file of weights (random ones), runs each command of the page with small images and few
steps, and runs the page's program on the export in a process that cannot import PruneGym. It needs the environment of
``make networks``, and about ten minutes of one idle core for each network.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from prunegym.models import build
from prunegym.models.data.pretrained import pretrained_transform

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/your-data.md"
NAMED = "torchvision:mobilenet_v3_small"
"""The network of the page."""
NETWORKS = (NAMED, "timm:efficientnet_lite0")
SIZE, SHORTER = 96, 110
SMALLER = {
    "train-cnn": "--epochs 1 --train-images :320",
    "prepare": "--epochs 1 --train-images :128 --set imitation.steps=4 --set imitation.batch_size=32",
    "train": "--episodes 64 --set n_envs=32 --set eval_every=2 --train-images :128",
    "evaluate": "--images 50",
}
"""Options that are added to commands; the last one given counts."""


def blocks(language: str) -> list[str]:
    """Return the code blocks of the page."""
    parts = PAGE.read_text().split(f"```{language}\n")[1:]
    return [part.split("```")[0] for part in parts]


def commands(network: str) -> list[list[str]]:
    """Return the page's commands for a network, with small images and few steps."""
    (block,) = [one for one in blocks("bash") if NAMED in one]
    found = []
    for line in block.replace(NAMED, network).splitlines():
        words = shlex.split(line, comments=True)
        if "--dataset" in words:
            words += ["--image-size", str(SIZE), "--resize", str(SHORTER)]
        found.append(words + shlex.split(SMALLER.get(words[1], "")))
    return found


def timed(what: str, command: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    """Run a command in a folder, and print its last lines and its time; stop if it fails."""
    started = time.perf_counter()
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    print(f"$ {what}\n{ran.stdout[-1500:]}{ran.stderr[-800:] if ran.returncode else ''}", end="")
    print(f"[{time.perf_counter() - started:.0f} s]\n", flush=True)
    if ran.returncode:
        raise SystemExit(f"failed: {what}")


def journey(network: str, folder: Path) -> None:
    """Run the commands for one network, then its export without this package."""
    torch.save(build(network, None, seed=1, image_size=SIZE).state_dict(), folder / "mobilenet.pth")
    for words in commands(network):
        timed(shlex.join(words), [sys.executable, "-W", "ignore", "-m", "prunegym", *words[1:]], folder)
    (program,) = [one for one in blocks("python") if "def answer(" in one]
    # The page's sizes are those of the library.
    program = program.replace("256, 224", f"{SHORTER}, {SIZE}").replace("photo.jpg", "photos/test/ring/00000.jpg")
    transform = pretrained_transform(network)[0]
    program = program.replace("BILINEAR", transform.interpolation.upper())
    alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    check = "\nimport sys\nassert 'prunegym' not in sys.modules and 'torch' not in sys.modules\n"
    timed("the page's program on runs/net/agent.onnx", [sys.executable, "-c", program + check], folder, alone)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--network", action="append", help=f"by default {' and '.join(NETWORKS)}")
    parser.add_argument("--photos", type=Path, help="a folder that examples/make_photos.py has made")
    parser.add_argument("--out", type=Path, help="keep what is made in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        for network in options.network or NETWORKS:
            folder = (options.out or Path(made)) / network.replace(":", "-")
            folder.mkdir(parents=True)
            if options.photos is not None:
                (folder / "photos").symlink_to(options.photos.resolve())
            else:
                make = [
                    sys.executable,
                    str(ROOT / "examples/make_photos.py"),
                    "photos",
                    "--images",
                    str(options.images),
                ]
                timed("make_photos.py", make, folder)
            journey(network, folder)


if __name__ == "__main__":
    main()
