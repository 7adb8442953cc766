"""Networks of torchvision, timm and of your own code by name, with the images that they were made for."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prunegym.errors import InvalidInputError, MissingDependencyError, UnknownNameError
from prunegym.models import ZOO, CNNInfo, MaskedCNN, build, from_arrays, load_dataset, read_model, save_weights
from prunegym.models.catalog import open_model, open_trained
from prunegym.models.data.pretrained import pretrained_transform
from prunegym.models.data.transform import Transform
from prunegym.models.named_networks import begin_with
from prunegym.models.storage.model_file import write_model
from tests.models.stand_ins import NETWORK, install, uninstall

pytestmark = pytest.mark.usefixtures("libraries", "fresh_datasets")

OWN = f"""{NETWORK}
def make(num_classes=4):
    return Tiny(num_classes)

make.pretrained_cfg = {{"input_size": (3, 20, 20), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0,
                       "classes": ("a", "b", "c", "d")}}

def fixed():
    return Tiny(4)

number = 3

def wrong():
    return 3
"""


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install(tmp_path, monkeypatch)
    (tmp_path / "own_code.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield
    uninstall()
    sys.modules.pop("own_code", None)
    for name in [name for name in ZOO if name.startswith("own_code:")]:
        del ZOO[name]


@pytest.mark.parametrize(
    ("name", "transform", "mean", "classes"),
    [
        ("timm:tiny", Transform((20, 20), 25), (0.5, 0.5, 0.5), ("ant", "bee", "cat", "dog", "elk", "fox")),
        ("timm:tiny.tag", Transform((20, 20), 25), (0.5, 0.5, 0.5), ("ant", "bee", "cat", "dog", "elk", "fox")),
        ("torchvision:tiny", Transform((24, 24), 28, interpolation="bicubic"), (0.4, 0.5, 0.6),
         ("ant", "crane", "crane", "dog", "elk", "fox")),
        ("own_code:make", Transform((20, 20), 20, interpolation="bicubic"), (0.1, 0.2, 0.3), ("a", "b", "c", "d")),
    ],
)  # fmt: skip
def test_images_and_classes_are_those_of_the_library(
    name: str, transform: Transform, mean: tuple[float, ...], classes: tuple[str, ...], tmp_path: Path
) -> None:
    found = open_model(name)
    assert (found.info.transform, found.info.normalisation.mean, found.info.classes) == (transform, mean, classes)
    assert found.masked.output_shape == (len(classes),)
    assert found.masked.image_shape == (3, *transform.image_size)
    other = open_model(name, image_size=16, resize=18)
    assert other.info.transform == Transform((16, 16), 18, interpolation=transform.interpolation)
    assert other.info.normalisation.mean == mean
    # All of it is in the model file, and the file alone builds the network again.
    write_model(tmp_path / "cnn.safetensors", found.masked.network, found.info)
    again = read_model(tmp_path / "cnn.safetensors")
    assert again.info == found.info
    images = torch.randn(2, *found.info.image_shape)
    torch.testing.assert_close(again.masked(images), found.masked(images), rtol=0, atol=0)


def test_weights_of_a_file(tmp_path: Path) -> None:
    trained = build("timm:tiny", num_classes=6, image_size=20, seed=3).eval()
    torch.save({"epoch": 3, "model": trained.state_dict()}, tmp_path / "weights.pth")
    images = torch.randn(2, 3, 20, 20)
    found = open_trained("timm:tiny", weights="weights.pth")
    torch.testing.assert_close(found.masked(images), trained(images), rtol=0, atol=0)
    assert [gate.name for gate in open_trained("timm:tiny", weights="weights.pth", gates="6").masked.gates] == ["6"]
    with pytest.raises(InvalidInputError, match=r"is a network with random weights.*--weights FILE"):
        open_trained("timm:tiny")
    state = trained.state_dict()
    torch.save(
        {name.replace("0.", "stem.") if name[:2] == "0." else name: state[name] for name in state}, "renamed.pth"
    )
    with pytest.raises(InvalidInputError, match=r"does not fit Tiny: missing '0\.weight' \(nearest in the file: 'stem"):
        open_model("timm:tiny", weights="renamed.pth")
    with pytest.raises(InvalidInputError, match="--weights is for a network by name; digits has its own"):
        open_model("digits", weights="weights.pth")
    # Another number of classes: all but the last layer begin with the file's weights.
    network = build("timm:tiny", num_classes=2, image_size=20)
    head = network[-1].weight.detach().clone()
    assert begin_with(network, "timm:tiny", "weights.pth", 2) == ["10.weight", "10.bias"]
    assert torch.equal(network[-1].weight, head)
    assert torch.equal(network[0].weight, trained[0].weight)
    with pytest.raises(InvalidInputError, match=r"of other shapes '0\.weight' \(8, 3, 3, 3\), here \(8, 1, 3, 3\)"):
        begin_with(build("timm:tiny", num_classes=2, in_channels=1, image_size=20), "timm:tiny", "weights.pth", 2)


def test_a_data_set_decides_on_the_outputs_unless_the_weights_do(tmp_path: Path) -> None:
    assert open_model("timm:tiny", "digits").info.image_shape == (1, 8, 8)
    assert open_model("timm:tiny", "digits").masked.output_shape == (10,)
    save_weights(build("timm:tiny", num_classes=10, in_channels=1, image_size=8), "ten.safetensors")
    assert open_model("timm:tiny", "digits", weights="ten.safetensors").info.classes == tuple("0123456789")
    assert open_model("own_code:fixed", image_size=8).info.classes == tuple("0123")
    with pytest.raises(InvalidInputError, match="takes images of 3 channels, not 1"):
        open_model("torchvision:tiny", "digits")


def test_names_stand_for_networks_in_python() -> None:
    images, labels = torch.randint(0, 256, (12, 3, 20, 20), dtype=torch.uint8), torch.arange(12) % 3
    part = from_arrays((images, labels), (images, labels), name="mine", classes=["x", "y", "z"])["train"]
    masked = MaskedCNN(CNNInfo.of("timm:tiny", part).build(), part.batch(torch.arange(1)))
    assert masked.output_shape == (3,)
    assert pretrained_transform("timm:tiny")[0] == Transform((20, 20), 25)
    with pytest.raises(InvalidInputError, match=r"Leave out image_size, or like"):
        load_dataset("digits", like="timm:tiny")


def test_a_file_imports_no_code_of_yours_by_itself(tmp_path: Path) -> None:
    found = open_model("own_code:make")
    write_model(tmp_path / "cnn.safetensors", found.masked.network, found.info)
    assert read_model("cnn.safetensors").info == found.info  # the name was given in this process
    del ZOO["own_code:make"], sys.modules["own_code"]
    with pytest.raises(InvalidInputError, match=r"is your code, and is not imported because a file says so: --import"):
        read_model("cnn.safetensors")
    assert "own_code" not in sys.modules
    assert read_model("cnn.safetensors", build("own_code:make", 4, image_size=20)).info == found.info


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("timm:tini", UnknownNameError, r"Unknown network of timm 'tini'\. Did you mean 'tiny'\?"),
        ("torchvision:tiny_larg", UnknownNameError, "Did you mean 'tiny_large'"),
        ("own_code:mak", InvalidInputError, "own_code has no 'mak'"),
        ("nowhere:make", InvalidInputError, r"'nowhere:make' cannot be imported: ModuleNotFoundError"),
        ("own_code:number", InvalidInputError, "is a int; name a function or a class"),
        ("own_code:wrong", InvalidInputError, "returned a int; a torch module is needed"),
    ],
)
def test_names_that_are_wrong(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_model(name)


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ("raise OSError('undefined symbol: _ZN3c10')", "does not fit torch .*undefined symbol.*pip install"),
        ("raise ModuleNotFoundError('No module', name='torchvision')", "torchvision is not installed. Install it: pip"),
    ],
)
def test_a_library_that_is_not_there(setup: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "stand-ins/torchvision/__init__.py").write_text(setup)
    for _ in range(2):
        with pytest.raises(MissingDependencyError, match=message):
            build("torchvision:resnet18")


def test_a_torchvision_that_does_not_fit_the_installed_torch(tmp_path: Path) -> None:
    """As torchvision itself fails when it was built for another torch; timm imports it."""
    failing = "raise RuntimeError('operator torchvision::nms does not exist')"
    for library, text in {"torchvision": failing, "timm": "import torchvision"}.items():
        (tmp_path / f"broken/{library}").mkdir(parents=True)
        (tmp_path / f"broken/{library}/__init__.py").write_text(text)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'broken')!r})\n"
        "from prunegym.errors import MissingDependencyError\nfrom prunegym.models import build\n"
        "for name in ('torchvision:resnet18', 'timm:resnet18', 'torchvision:resnet18'):\n    try:\n"
        "        build(name)\n    except MissingDependencyError as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    minor = int(torch.__version__.split(".")[1]) + 15
    message = (
        rf"does not fit torch .*operator torchvision::nms does not exist.*pip install 'torchvision==0\.{minor}\.\*'"
    )
    assert len(re.findall(message, done.stdout)) == 3
