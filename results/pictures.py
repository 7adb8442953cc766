"""Draw masks on images, and the MACs of each layer: ``python results/pictures.py``.

With ``PRUNEGYM_DATA`` (a folder with ``cifar10-jpeg.tar.gz``) the pictures in ``docs/`` are of the stored ResNet-20;
without it, of the shipped digits model: ``python results/pictures.py OUT`` writes them to another folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from prunegym import Dataset, DynamicCNN, load_dataset, make_task, shipped_model
from prunegym.envs import MaskSimulator, render
from prunegym.errors import MissingDataError, UnknownNameError

ROOT = Path(__file__).parents[1]
STORED = ROOT / "results/cifar10-jpeg/frozen.safetensors"
IMAGES = 2000
QUANTILES = (0.01, 0.35, 0.65, 0.99)
"""Which images are shown: from one of those with the fewest MACs to one of those with the most."""
TITLE = (
    "One CNN, four test images. Each row is a layer: blue channels run for this image, grey channels are skipped. "
    "MACs: share of the dense CNN's."
)


def main(out: Path) -> None:
    """Write ``masks.png`` and ``macs-by-layer.png``."""
    model, name, data = load()
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:IMAGES]
    predicted = [model.predict(data.images[part]) for part in chosen.split(250)]
    masks = torch.cat([one.masks for one in predicted])
    correct = torch.cat([one.labels for one in predicted]) == data.labels[chosen]
    share = torch.cat([one.mac_share for one in predicted])
    shown = pick(share, correct, data.labels[chosen])
    draw_masks(model, data, chosen[shown], masks[shown]).save(out / "masks.png")
    draw_layers(model, name, masks, out / "macs-by-layer.png")


def load() -> tuple[DynamicCNN, str, Dataset]:
    """Return a model, its name and its test images: the stored ResNet-20 where its data are, else the digits model."""
    try:
        return DynamicCNN.load(STORED), "ResNet-20 on CIFAR-10 (JPEG), CNN frozen", load_dataset("cifar10-jpeg", "test")
    except (UnknownNameError, MissingDataError):
        return shipped_model("digits"), "the shipped model digits", load_dataset("digits", "test")


def pick(share: Tensor, correct: Tensor, labels: Tensor) -> list[int]:
    """Return correctly classified images of different classes at several quantiles of the MAC share."""
    order = [int(place) for place in share.argsort() if correct[place]]
    found: list[int] = []
    for quantile in QUANTILES:
        start = round(quantile * (len(order) - 1))
        nearest = sorted(range(len(order)), key=lambda place: abs(place - start))
        taken = {int(labels[one]) for one in found}
        found.append(next(order[place] for place in nearest if int(labels[order[place]]) not in taken))
    return found


def draw_masks(model: DynamicCNN, data: Dataset, indices: Tensor, masks: Tensor) -> Image.Image:
    """Draw each image with its prediction, its MACs, and the channels that are kept in each layer."""
    task = make_task(model=model.masked, dataset={"train": data, "test": data}, split="test", reward="macs")
    simulator = MaskSimulator(task, len(indices), np.random.default_rng(0))
    simulator.reset(indices.tolist())
    simulator.step(masks.numpy().astype(np.int8))
    tiles = [Image.fromarray(render(task, simulator.snapshot(), row)) for row in range(len(indices))]
    width, height, head = tiles[0].width, tiles[0].height, 34
    picture = Image.new("RGB", (2 * width, head + 2 * height), tiles[0].getpixel((0, 0)))
    ImageDraw.Draw(picture).text((12, 9), TITLE, (232, 232, 232), font=ImageFont.load_default(16))
    for place, tile in enumerate(tiles):
        picture.paste(tile, (place % 2 * width, head + place // 2 * height))
    return picture


def layer_macs(model: DynamicCNN, masks: Tensor) -> tuple[list[str], Tensor, Tensor]:
    """Return the layers' names, their dense MACs (layers,), and those of each image under its mask (images, layers)."""
    masked, dense, kept = model.masked, {}, {}
    parts = {gate.name: part.double().mean(1) for gate, part in zip(masked.gates, masked.split(masks), strict=True)}

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        dense[names[module]] = float(module.weight.numel() * positions)

    layers = {name: one for name, one in masked.network.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)}
    names = {module: name for name, module in layers.items()}
    hooks = [module.register_forward_hook(count) for module in layers.values()]
    with torch.no_grad():
        masked.network(torch.zeros(1, *masked.image_shape))
    for hook in hooks:
        hook.remove()
    for name in dense:
        kept[name] = torch.full((len(masks),), dense[name], dtype=torch.float64)
        for gate in masked.gates:
            # A layer's MACs are in proportion to the channels that it makes and to those that it reads.
            ends = [masked.graph[step].layer for step in (*gate.producers, *gate.consumers)]
            kept[name] *= parts[gate.name] ** ends.count(name)
    per_image = torch.stack(list(kept.values()), 1)
    if not torch.allclose(per_image.sum(1), masked.cost.macs(masks.float())):
        raise SystemExit("The layers' MACs do not add up to those of the cost model.")
    return list(dense), torch.tensor(list(dense.values()), dtype=torch.float64), per_image


def draw_layers(model: DynamicCNN, name: str, masks: Tensor, path: Path) -> None:
    """Draw each layer's MACs, dense and under the masks of many images."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names, dense, kept = layer_macs(model, masks)
    millions, mean = dense / 1e6, kept.mean(0) / 1e6
    low, high = (torch.quantile(kept, share, dim=0) / 1e6 for share in (0.1, 0.9))
    figure, panel = pyplot.subplots(figsize=(11, 4.2))
    places = np.arange(len(names))
    panel.bar(places, millions, color="0.85", label="all channels on (dense)")
    panel.bar(places, mean, color="C0", label="under the masks: mean; black lines span 80 % of the images")
    panel.errorbar(places, mean, yerr=[mean - low, high - mean], fmt="none", ecolor="0.2", capsize=3)
    panel.set_xticks(places, names, rotation=60, ha="right", fontsize=8)
    panel.set(ylabel="million MACs per image", ylim=(0, 1.25 * float(millions.max())))
    panel.set_title(
        f"{name}: {len(masks):,} test images keep {float(kept.sum(1).mean() / dense.sum()):.0%} of the MACs"
    )
    panel.legend(loc="upper center", ncols=2, frameon=False, fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs")
