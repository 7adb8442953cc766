"""Draw masks on images, the MACs of each layer, and the order of the commands: ``python results/pictures.py``.

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

STAGES = {
    "train-cnn": (0.3, 2, "a CNN learns\nto classify"),
    "prepare": (3.0, 2, "gates are added and trained\ntogether with the CNN"),
    "train": (5.7, 2, "the CNN is frozen;\nPPO trains the gates"),
    "finetune": (5.7, 0, "CNN and gates are\ntrained in turns"),
    "evaluate  predict  export": (8.4, 2, "figures on test images;\nnew images; an ONNX file"),
    "compare  benchmark": (3.0, 0, "train and evaluate several\nagents; report: a page"),
}
"""Each command, where its box is (left, bottom), and what it does."""
FLOW = (
    ("train-cnn", "prepare", "cnn\n.safetensors"),
    ("prepare", "train", "prepared\n.safetensors"),
    ("train", "evaluate  predict  export", "model\n.safetensors"),
    ("train", "finetune", "model.safetensors"),
    ("prepare", "compare  benchmark", "prepared.safetensors"),
)
BOX = (1.9, 1.1)


def main(out: Path) -> None:
    """Write ``commands.png``, ``masks.png`` and ``macs-by-layer.png``."""
    draw_commands(out / "commands.png")
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


def draw_commands(path: Path) -> None:
    """Draw which command runs which stage, and the file that it hands to the next."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patches, pyplot

    figure, panel = pyplot.subplots(figsize=(10.6, 4))
    panel.set(xlim=(0.1, 10.5), ylim=(-0.4, 4.1))
    panel.axis("off")
    width, height = BOX
    for name, (left, bottom, text) in STAGES.items():
        shape = patches.FancyBboxPatch((left, bottom), width, height, "round,pad=0.08", fc="#e8eefa", ec="C0")
        panel.add_patch(shape)
        panel.text(left + width / 2, bottom + 0.82, name, ha="center", weight="bold", fontsize=9.5)
        panel.text(left + width / 2, bottom + 0.1, text, ha="center", fontsize=8.5)
    arrow = {"arrowstyle": "-|>", "color": "0.3", "shrinkA": 0, "shrinkB": 0}
    for start, end, file in FLOW:
        (left, bottom, _), (right, low, _) = STAGES[start], STAGES[end]
        down = low < bottom
        tail = (left + width / 2, bottom - 0.08) if down else (left + width + 0.08, bottom + height / 2)
        head = (right + width / 2, low + height + 0.08) if down else (right - 0.08, low + height / 2)
        panel.annotate("", head, tail, arrowprops=arrow)
        place, align = (
            ((tail[0] - 0.1, 1.55), "right") if down else (((tail[0] + head[0]) / 2, tail[1] + 0.12), "center")
        )
        panel.text(*place, file, ha=align, va="center" if down else "bottom", fontsize=7.5, color="0.3")
    half = width / 2
    (left, bottom, _), (middle, _, _) = STAGES["train-cnn"], STAGES["train"]
    right, low, _ = STAGES["evaluate  predict  export"]
    top = bottom + height + 0.75
    panel.plot([left + half, left + half, middle + half], [bottom + height + 0.08, top, top], color="0.3", lw=1)
    panel.annotate("", (middle + half, bottom + height + 0.08), (middle + half, top), arrowprops=arrow)
    keep = "to keep the CNN's weights: train --recipe refined adds the gates"
    panel.text((left + middle) / 2 + half, top + 0.1, keep, ha="center", fontsize=8.5, color="0.3")
    panel.plot([middle + width + 0.08, right + half], [height / 2] * 2, color="0.3", lw=1)
    panel.annotate("", (right + half, low - 0.08), (right + half, height / 2), arrowprops=arrow)
    figure.tight_layout(pad=0)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs")
