"""Tries networks of torchvision, timm and others, and writes docs/networks.md. `make networks` calls it.

Needs torchvision and timm in a separate environment, which `make networks` creates (several GB).
"""

from __future__ import annotations

import argparse
import importlib
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from prunegym.errors import PruneGymError
from prunegym.models import MaskedCNN
from prunegym.models.skipping.skipping_cnn import SkippingCNN


class Row(NamedTuple):
    """A network: number, name, where it comes from, size of images, output, and Torch-Pruning's MAC share at half."""

    number: int
    name: str
    make: Callable[[], nn.Module]
    size: int = 224
    output: str | None = None
    rival: float | None = None


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    room = "torchvision.models.segmentation" if options.pop("segmentation", False) else "torchvision.models"
    return lambda: getattr(importlib.import_module(room), name)(weights=None, **options)


def _timm(name: str) -> Callable[[], nn.Module]:
    return lambda: importlib.import_module("timm").create_model(name)


def _transformers(kind: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        library = importlib.import_module("transformers")
        return getattr(library, f"{kind}ForImageClassification")(getattr(library, f"{kind}Config")())

    return make


_VISION: dict[str, float | None] = {
    "resnet18": 0.266, "resnet50": 0.257, "wide_resnet50_2": None, "resnext50_32x4d": None, "vgg16_bn": None,
    "densenet121": 0.261, "googlenet": 0.270, "inception_v3": None, "squeezenet1_1": 0.327, "mobilenet_v2": 0.277,
    "mobilenet_v3_small": 0.312, "mobilenet_v3_large": None, "mnasnet1_0": None, "efficientnet_b0": 0.280,
    "efficientnet_v2_s": None, "shufflenet_v2_x1_0": None, "regnet_y_400mf": 0.257, "regnet_x_400mf": 0.257,
    "convnext_tiny": 0.257, "alexnet": None,
}  # fmt: skip
_TIMM: dict[str, float | None] = {
    "resnet26d": 0.251, "hrnet_w18_small": None, "res2net50_26w_4s": None, "resnest14d": None, "ghostnet_100": 0.742,
    "ese_vovnet19b_dw": 0.259, "mixnet_s": None, "nfnet_l0": None, "mobilenetv4_conv_small": 0.275,
    "efficientnet_lite0": 0.280, "repvgg_a0": 0.253, "convnextv2_atto": 0.266, "nf_resnet26": None,
    "cspdarknet53": None, "mobilevit_xxs": None,
}  # fmt: skip
_PLAIN = {"aux_logits": False, "init_weights": False}
_OPTIONS: dict[str, dict[str, Any]] = {"googlenet": _PLAIN, "inception_v3": _PLAIN}
_SIZES = {"inception_v3": 299, "cspdarknet53": 256, "mobilevit_xxs": 256}
_SEGMENTATION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")


def rows() -> list[Row]:
    """Return the networks."""
    found = [
        Row(1 + place, name, _torchvision(name, **_OPTIONS.get(name, {})), _SIZES.get(name, 224), None, rival)
        for place, (name, rival) in enumerate(_VISION.items())
    ]
    for place, name in enumerate(_SEGMENTATION):
        found.append(Row(21 + place, name, _torchvision(name, segmentation=True, weights_backbone=None), 224, "out"))
    for place, (name, rival) in enumerate(_TIMM.items()):
        found.append(Row(24 + place, name, _timm(name), _SIZES.get(name, 224), None, rival))
    for place, kind in enumerate(("ResNet", "MobileNetV2")):
        found.append(Row(39 + place, f"transformers {kind}", _transformers(kind), 224, "logits"))
    return found


@torch.no_grad()
def tried(row: Row) -> str:
    """Return a line of the table for a network."""
    torch.manual_seed(0)
    try:
        network = row.make().eval()
    except ImportError as error:
        return f"| {row.number} | {row.name} | not tried: {error} |"
    example, cells = torch.zeros(1, 3, row.size, row.size), []
    try:
        for gates in ("auto", "all"):
            start = time.process_time()
            masked = MaskedCNN(network, example, gates=gates, output=row.output)
            seconds = time.process_time() - start
            images = torch.randn(2, 3, row.size, row.size)
            result = network(images.clone())
            wanted = result[row.output] if row.output else result
            error = float((masked(images, torch.ones(2, masked.mask_size)) - wanted).abs().max() / wanted.abs().max())
            mask = torch.ones(1, masked.mask_size)
            for part in masked.split(mask):
                part[:, : part.shape[1] // 2] = 0
            share, removable = masked.cost.mac_share(mask).item(), 1 - masked.cost.fixed_macs / masked.cost.total_macs
            cells += [f"{len(masked.gates)}/{masked.mask_size}", f"{removable:.3f}", f"{share:.3f}", f"{error:.0e}"]
        ways = ", ".join(SkippingCNN(masked).available)
    except PruneGymError as refusal:
        return f"| {row.number} | {row.name} | refused: {refusal} |"
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    rival = "" if row.rival is None else f"{row.rival:.3f}"
    return f"| {row.number} | {row.name} | {seconds:.1f} | {memory:.1f} | {' | '.join(cells)} | {rival} | {ways} |"


def main() -> None:
    """Try the networks whose numbers are given, else all, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int)
    parser.add_argument("--out", type=Path, default=Path("docs/networks.md"))
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = "gates/bits", "removable", "half", "error"
    titles = ["", "network", "CPU s", "GB, peak", *[f"{name}, {gates}" for gates in ("auto", "all") for name in names]]
    titles += ["half, Torch-Pruning", "ways"]
    lines = ["# Networks that were tried", "", f"| {' | '.join(titles)} |", "| " + "--- | " * len(titles)]
    for row in rows():
        if not chosen.numbers or row.number in chosen.numbers:
            lines.append(tried(row))
            print(lines[-1], flush=True)
    chosen.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
