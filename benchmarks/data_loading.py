"""Memory and waiting while a folder of JPEGs is evaluated and trained on, compared with the same images in memory.

Each form runs in a separate process. Memory is the peak of PSS, summed over the process and its children. Waiting is
the share of the time in which the network has no images to run.

    python benchmarks/data_loading.py memory --images 50000  # SqueezeNet
    python benchmarks/data_loading.py waiting --images 3000  # ResNet-18

The exit code is 1 if a bar is missed: 2.5 GiB, and 10 % of the time. JPEGs are made where there are none.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from prunegym.models import TrainConfig, accuracy, build, load_dataset, train
from prunegym.models.data.files import image_folders
from prunegym.models.data.sources.lazy_images import LazyImages, ReadImages

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from make_photos import make_photos

SIZE = 224
LARGEST_MEMORY = 2.5 * 2**30
LARGEST_WAITING = 0.10
MAKING = 1000
"""JPEGs that are made; more are hard links to these."""


class Fire(nn.Module):
    """SqueezeNet's block: a few channels, from which 1x1 and 3x3 convolutions make many."""

    def __init__(self, channels: int, few: int, many: int) -> None:
        super().__init__()
        self.few = nn.Conv2d(channels, few, 1)
        self.small, self.large = nn.Conv2d(few, many, 1), nn.Conv2d(few, many, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 2 * many, height, width)."""
        few = self.few(x).relu()
        return torch.cat([self.small(few).relu(), self.large(few).relu()], 1)


def squeezenet(classes: int) -> nn.Module:
    """Return SqueezeNet 1.1 (Iandola et al. 2016)."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64), pool(), Fire(128, 32, 128),
        Fire(256, 32, 128), pool(), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
        nn.Dropout(), nn.Conv2d(512, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def pss(process: int) -> int:
    """Return the bytes of a process and its children, shared pages divided among those who share them."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    own = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return own + sum(pss(int(child)) for child in children)


class Peak(threading.Thread):
    """Watches a process."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.process, self.bytes = process, 0

    def run(self) -> None:
        """Look five times a second until it ends."""
        while Path(f"/proc/{self.process}").exists():
            try:
                self.bytes = max(self.bytes, pss(self.process))
            except (OSError, StopIteration):  # it has just ended
                return
            time.sleep(0.2)


def one_form(folder: Path, form: str, network: str, evaluated: int, trained: int, threads: int) -> None:
    """Evaluate and train; print the figures as JSON."""
    torch.set_num_threads(threads)
    image_folders.IN_MEMORY = 0 if form == "as needed" else 2**62
    began = time.perf_counter()
    data, test = (load_dataset(str(folder), split, image_size=SIZE) for split in ("train", "test"))
    loaded = time.perf_counter() - began
    model = squeezenet(len(data.classes)) if network == "squeezenet" else build(network, len(data.classes), 3, SIZE)
    rows = {"form": form, "network": network, "images": len(data) + len(test), "seconds_to_load": loaded}
    for name, some in (("evaluate", test.sample(evaluated)), ("train", data.sample(trained))):
        source = some.images.source if isinstance(some.images, LazyImages) else None
        before, began = source.waited if isinstance(source, ReadImages) else 0.0, time.perf_counter()
        if name == "evaluate":
            accuracy(model, some, batch_size=64)
        else:
            train(model, dataclasses.replace(some, pad=0), TrainConfig(epochs=1, batch_size=32, learning_rate=0.01))
        seconds = time.perf_counter() - began
        waited = source.waited - before if isinstance(source, ReadImages) else 0.0
        rows[name] = {"images": len(some), "images_a_second": len(some) / seconds, "waiting": waited / seconds}
    print(json.dumps(rows))


def measure(folder: Path, form: str, options: argparse.Namespace) -> dict:
    """Run a form in a separate process, and add its memory."""
    command = [sys.executable, __file__, options.bar, "--folder", str(folder), "--form", form]
    for name in ("network", "evaluated", "trained", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = Peak(process.pid)
        peak.start()
        text = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{form} failed")
    return {**json.loads(text.splitlines()[-1]), "peak_pss": peak.bytes}


def main() -> None:
    """Measure both forms, print them, and judge the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bar", choices=("memory", "waiting"))
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--folder", type=Path, help="A folder of JPEGs; by default one is made.")
    parser.add_argument("--network", help="squeezenet, or a network of the zoo; by default that of the bar.")
    parser.add_argument("--evaluated", type=int, default=1000, help="Images to evaluate on.")
    parser.add_argument("--trained", type=int, default=1000, help="Images to train on.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="Leave out the other form: 'as needed' or 'in memory'.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--form", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.network = options.network or ("squeezenet" if options.bar == "memory" else "resnet18")
    if options.form:
        one_form(options.folder, options.form, options.network, options.evaluated, options.trained, options.threads)
        return
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made) / "photos"
        if options.folder is None:
            make_photos(folder, options.images, sides=(SIZE, SIZE), links=max(1, options.images // MAKING))
        forms = [options.only] if options.only else ["as needed", "in memory"]
        rows = [measure(folder, form, options) for form in forms]
    for row in rows:
        print(f"{row['form']}: {row['images']} images, peak {row['peak_pss'] / 2**30:.2f} GiB")
        for name in ("evaluate", "train"):
            print(f"  {name}: {row[name]['images_a_second']:.1f} images/s, waiting {100 * row[name]['waiting']:.1f} %")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    first = rows[0]
    waiting = max(first["evaluate"]["waiting"], first["train"]["waiting"])
    missed = first["peak_pss"] > LARGEST_MEMORY if options.bar == "memory" else waiting > LARGEST_WAITING
    sys.exit(int(missed and first["form"] == "as needed"))


if __name__ == "__main__":
    main()
