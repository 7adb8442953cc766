"""Exported models in ONNX Runtime against the models they were made of."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.errors import InvalidInputError, MissingDependencyError, UnknownNameError
from prunegym.models import (
    ZOO,
    CNNInfo,
    DynamicCNN,
    GatePolicy,
    MaskedCNN,
    MaskFeatures,
    Normalisation,
    StaticPolicy,
    build,
    fixed_policy,
    load_dataset,
    shipped_model,
)
from prunegym.models.export.onnx_channels import cut_gates
from prunegym.models.export.onnx_model import export_onnx
from prunegym.models.storage.model_file import Bundle
from tests.models.many_networks import NETWORKS
from tests.models.network_parts import Functional, c, pooled
from tests.models.slicing import randomise

SIZES = {name: 8 if name.startswith("simple") else 32 for name in ZOO}
# What stands in a network of NETWORKS that the export cannot write; all others must be written.
REFUSED = {"maximum over channels": "'max'", "instance norm": "'instance_norm'"}


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def info_of(name: str, shape: tuple[int, int, int], classes: int = 10) -> CNNInfo:
    normalisation = Normalisation((0.4, 0.5, 0.6)[: shape[0]], (0.2, 0.25, 0.3)[: shape[0]])
    return CNNInfo(name, classes, shape, normalisation, tuple(map(str, range(classes))), "none")


def zoo_model(name: str, layerwise: bool, penalty_range: tuple[float, float] | None = None) -> DynamicCNN:
    """A network with norms that are not trivial, and a policy whose decisions differ from image to image."""
    torch.manual_seed(1)
    shape = (3, SIZES[name], SIZES[name])
    masked = MaskedCNN(randomise(build(name, image_size=shape[1])), torch.zeros(1, *shape))
    features = MaskFeatures(masked, layerwise, grid=3)  # 32 and 8 pixels are no multiples of 3
    for index, size in enumerate(features.sizes):
        features.get_buffer(f"mean{index}").normal_(std=0.1)
        features.get_buffer(f"std{index}").copy_(torch.rand(size) + 0.5)
    policy = GatePolicy(features, 8, bias=0.0, penalty_range=penalty_range)
    for head in policy.heads:
        nn.init.normal_(head[2].weight)
    return DynamicCNN(masked, policy, info_of(name, shape))


def random_images(model: DynamicCNN, count: int) -> Tensor:
    smooth = torch.rand(count, *model.info.image_shape) * torch.rand(count, model.info.image_shape[0], 1, 1)
    return (255 * smooth).byte()


def check(model: DynamicCNN, path: Path, images: Tensor, **inputs: np.ndarray) -> Tensor:
    """Compare predictions image by image, and return the masks.

    A logit of a gate within rounding of 0 may fall on either side, and a mask that differs leads to other logits: of
    thousands of bits some are so close, and images with such a bit are not compared further.
    """
    run = session(path)
    penalty = float(inputs["penalty"][0]) if "penalty" in inputs else None
    expected = model.predict(images, penalty)
    found = [run.run(["logits", "mask"], {"images": image[None], **inputs}) for image in images.numpy()]
    logits, masks = (torch.from_numpy(np.concatenate(column)) for column in zip(*found, strict=True))
    equal = (masks == expected.masks).all(1)
    assert equal.float().mean() > 0.8
    scale = max(1.0, float(expected.logits.abs().max()))
    torch.testing.assert_close(logits[equal] / scale, expected.logits[equal] / scale, atol=1e-4, rtol=0)
    assert torch.equal(logits.argmax(1)[equal], expected.labels[equal])
    return masks


@pytest.mark.parametrize("layerwise", [True, False], ids=["layerwise", "one step"])
@pytest.mark.parametrize(
    "name",
    ["simple-cnn", "simple-cnn-wide", "resnet20", "vgg11", pytest.param("vgg16", marks=pytest.mark.slow), "m-cifarnet"],
)
def test_zoo_with_a_policy(name: str, layerwise: bool, tmp_path: Path) -> None:
    model = zoo_model(name, layerwise)
    path = model.export_onnx(tmp_path / "model.onnx")
    masks = check(model, path, random_images(model, 12))
    assert len(masks.unique(dim=0)) > 6
    assert cut_gates(model.masked) == frozenset(range(len(model.masked.gates)))


def test_the_shipped_model_on_every_test_image(tmp_path: Path) -> None:
    model, digits = shipped_model("digits"), load_dataset("digits", "test")
    masks = check(model, model.export_onnx(tmp_path / "digits.onnx"), digits.images)
    assert len(masks.unique(dim=0)) > 100
    unit = session(model.export_onnx(tmp_path / "unit.onnx", pixels="unit"))
    (logits,) = unit.run(["logits"], {"images": digits.images[:1].float().numpy() / 255})
    torch.testing.assert_close(torch.from_numpy(logits), model(digits.images[:1]), atol=1e-4, rtol=0)
    assert '"0"' in unit.get_modelmeta().custom_metadata_map["classes"]


@pytest.mark.parametrize("layerwise", [True, False], ids=["layerwise", "one step"])
def test_lambda_is_an_input_that_may_be_left_out_or_is_fixed(layerwise: bool, tmp_path: Path) -> None:
    model = zoo_model("simple-cnn-wide", layerwise, penalty_range=(0.1, 0.7))
    images = random_images(model, 8)
    path = model.export_onnx(tmp_path / "free.onnx")
    low, middle = (check(model, path, images, penalty=np.array([value], np.float32)) for value in (0.1, 0.4))
    assert not torch.equal(low, middle)
    assert torch.equal(check(model, path, images), middle)
    fixed = session(model.export_onnx(tmp_path / "fixed.onnx", penalty=0.1))
    assert [one.name for one in fixed.get_inputs()] == ["images"]
    masks = [fixed.run(["mask"], {"images": image[None]})[0] for image in images.numpy()]
    assert np.array_equal(np.concatenate(masks), low.numpy())


def test_features_are_squeezed_where_there_are_too_many_channels(tmp_path: Path) -> None:
    model = zoo_model("m-cifarnet", True)
    policy = GatePolicy(MaskFeatures(model.masked, grid=2, feature_size=50), 8, bias=0.0)
    for head in policy.heads:
        nn.init.normal_(head[2].weight)
    model = DynamicCNN(model.masked, policy, model.info)
    check(model, model.export_onnx(tmp_path / "model.onnx"), random_images(model, 8))


def weights_in(path: Path) -> int:
    return sum(int(np.prod(constant.dims)) for constant in onnx.load(path).graph.initializer)


@pytest.mark.parametrize("name", ["simple-cnn", "resnet20", "vgg11"])
def test_a_static_mask_is_cut_at_export(name: str, tmp_path: Path) -> None:
    masked = zoo_model(name, True).masked
    mask = torch.cat([(torch.rand(gate.width) < 0.5).float() for gate in masked.gates])
    masked.split(mask)[1].zero_()
    model = DynamicCNN(masked, fixed_policy(masked, mask), info_of(name, (3, SIZES[name], SIZES[name])))
    path = model.export_onnx(tmp_path / "static.onnx")
    check(model, path, random_images(model, 4))
    assert not {node.op_type for node in onnx.load(path).graph.node} & {"Gather", "NonZero"}
    assert weights_in(path) < 0.7 * weights_in(model.export_onnx(tmp_path / "dense.onnx", decide="all"))


@pytest.mark.parametrize("policy", ["gates", "static"])
def test_gates_of_which_nothing_is_kept(policy: str, tmp_path: Path) -> None:
    model = zoo_model("vgg11", True)
    if policy == "static":
        static = StaticPolicy(MaskFeatures(model.masked), bias=-1.0)
        model = DynamicCNN(model.masked, static, model.info)
    else:
        model.policy.rescale_logits(1.0, -1e6)
    masks = check(model, model.export_onnx(tmp_path / "model.onnx"), random_images(model, 3))
    assert not masks.any()


@pytest.mark.parametrize("name", [name for name, (_, gates) in NETWORKS.items() if gates])
def test_networks_of_every_shape_under_any_mask(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = randomise(NETWORKS[name][0]())
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
    outputs = masked.graph[masked.graph.output].shape[1]
    model = Bundle(masked=masked, info=info_of("mine", (3, 8, 8), outputs))
    path = tmp_path / "model.onnx"
    if name in REFUSED:
        with pytest.raises(InvalidInputError, match=REFUSED[name]):
            export_onnx(model, path, decide="input")
        return
    run = session(export_onnx(model, path, decide="input", pixels="unit"))
    for kept in (0.0, 0.2, 0.5, 0.5, 0.8, 1.0):
        image, mask = torch.rand(1, 3, 8, 8), torch.rand(1, masked.mask_size) < kept
        (logits,) = run.run(None, {"images": image.numpy(), "mask": mask.numpy()})
        expected = masked(model.info.normalisation(image).contiguous(), mask.float())
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)


def test_dense_export_equals_the_original_network(tmp_path: Path) -> None:
    model = zoo_model("resnet20", True)
    run = session(model.export_onnx(tmp_path / "dense.onnx", decide="all"))
    image = random_images(model, 1)
    assert [one.name for one in run.get_outputs()] == ["logits"]
    (logits,) = run.run(None, {"images": image.numpy()})
    expected = model.masked.network(model.prepare_images(image))
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)


def test_masked_channels_are_not_in_the_convolutions(tmp_path: Path) -> None:
    """The shape of every convolution's output, as ONNX Runtime ran it, is the number of kept channels."""
    model = zoo_model("simple-cnn", True)
    proto = onnx.load(model.export_onnx(tmp_path / "model.onnx"))
    convolutions = [node.output[0] for node in proto.graph.node if node.op_type == "Conv"]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in convolutions)
    onnx.save(proto, tmp_path / "open.onnx")
    run = session(tmp_path / "open.onnx")
    for image in random_images(model, 5).numpy():
        mask, *maps = run.run(["mask", *convolutions], {"images": image[None]})
        kept = [int(part.sum()) for part in model.masked.split(torch.from_numpy(mask))]
        assert [values.shape[1] for values in maps] == [max(1, number) for number in kept]


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = shipped_model("digits"), tmp_path / "model.onnx"
    bare = Bundle(masked=model.masked, info=model.info)
    with pytest.raises(InvalidInputError, match=r"CNN without a gate policy\. Export it with decide='input' or 'all'"):
        export_onnx(bare, path)
    with pytest.raises(UnknownNameError, match=r"Unknown decide 'mask'\. Known: all, input, policy\."):
        export_onnx(model, path, decide="mask")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match=r"Unknown pixels 'uint16'\. Did you mean 'uint8'\?"):
        export_onnx(model, path, pixels="uint16")  # type: ignore[arg-type]
    with pytest.raises(
        InvalidInputError, match=r"penalty is 0\.3, but the model's policy takes no lambda\. Leave it out"
    ):
        export_onnx(model, path, penalty=0.3)
    real = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *rest: real("no_such_module" if name == "onnx" else name, *rest)
    )
    with pytest.raises(MissingDependencyError, match=r"Install both: pip install 'prunegym\[onnx\]'"):
        model.export_onnx(path)


def test_a_norm_behind_a_grouped_convolution_is_applied_once(tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    masked = MaskedCNN(randomise(network), torch.zeros(1, 1, 8, 8))
    info = CNNInfo.of("mine", load_dataset("digits", "test"))
    path = export_onnx(Bundle(masked=masked, info=info), tmp_path / "model.onnx", decide="all")
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    run = session(path)
    found = np.concatenate([run.run(["logits"], {"images": image[None]})[0] for image in images.numpy()])
    np.testing.assert_allclose(found, masked(info.normalisation(images)).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize("late", [True, False])
def test_a_flattened_value_that_is_overwritten(late: bool, tmp_path: Path) -> None:
    """Also the original has the new numbers, where it is read later."""

    def overwritten(self: Functional, x: Tensor) -> Tensor:
        y = self.a(x)
        before = self.b(y)
        z = F.relu(y.flatten(1), inplace=True)
        return self.fc(pooled(self.b(y) if late else before)) + z[:, :5]

    network = randomise(Functional(overwritten, a=c(3, 8), b=c(8, 6), fc=nn.Linear(6, 5)))
    network = nn.Sequential(c(3, 3), nn.ReLU(), network)
    masked = MaskedCNN(network, torch.zeros(1, 3, 8, 8))
    model = Bundle(masked=masked, info=info_of("mine", (3, 8, 8), 5))
    path = tmp_path / "model.onnx"
    image = torch.rand(1, 3, 8, 8)
    (logits,) = session(export_onnx(model, path, decide="all", pixels="unit")).run(None, {"images": image.numpy()})
    expected = network(model.info.normalisation(image).contiguous()).detach()
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)
