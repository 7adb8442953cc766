"""Small packages that answer as torchvision and timm do, for the default tests: the real ones need `make networks`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prunegym.models.zoo.libraries import statement

NETWORK = """
from torch import nn

class Tiny(nn.Sequential):
    def __init__(self, num_classes, in_channels=3):
        first = nn.Conv2d(in_channels, 8, 3, 2, padding=1), nn.BatchNorm2d(8), nn.ReLU6()
        depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Hardswish()
        last = nn.Conv2d(8, 12, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        super().__init__(*first, *depthwise, *last, nn.Linear(12, num_classes))
"""

TORCHVISION = """
import types
from torchvision import models
"""

TORCHVISION_MODELS = (
    NETWORK
    + """
import sys, types

class Weights:
    class DEFAULT:
        meta = {"categories": ["ant", "crane", "crane", "dog", "elk", "fox"]}
        @staticmethod
        def transforms():
            return types.SimpleNamespace(crop_size=[24], resize_size=[28], mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.3],
                                         interpolation=types.SimpleNamespace(value="bicubic"))

def list_models(module=None):
    return ["tiny", "tiny_large"]

def get_model(name, weights=None, num_classes=6):
    assert weights is None and name in list_models()
    return Tiny(num_classes)

def get_model_weights(name):
    return Weights
"""
)

TIMM = (
    NETWORK
    + """
import types
from timm import data

def is_model(name):
    return name.split(".")[0] == "tiny"

def list_models():
    return ["tiny"]

def create_model(name, pretrained=False, in_chans=3, num_classes=6):
    assert not pretrained
    return Tiny(num_classes, in_chans)

class Config(dict):
    num_classes = 6
    def to_dict(self):
        return dict(self)

def get_pretrained_cfg(name):
    return Config(input_size=(3, 20, 20), crop_pct=0.8, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
"""
)

TIMM_DATA = """
def infer_imagenet_subset(config):
    return "tiny"

class ImageNetInfo:
    def __init__(self, subset):
        pass
    def index_to_description(self, index):
        return ["ant", "bee", "cat", "dog", "elk", "fox"][index]
"""
FILES = {
    "torchvision/__init__.py": TORCHVISION, "torchvision/models.py": TORCHVISION_MODELS,
    "timm/__init__.py": TIMM, "timm/data.py": TIMM_DATA,
}  # fmt: skip


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-ins before the packages that may be installed."""
    for name, text in FILES.items():
        path = folder / "stand-ins" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in [name for name in sys.modules if name.split(".")[0] in ("timm", "torchvision")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(folder / "stand-ins")
    statement.cache_clear()


def uninstall() -> None:
    """Forget them."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("timm", "torchvision")]:
        del sys.modules[name]
    statement.cache_clear()
