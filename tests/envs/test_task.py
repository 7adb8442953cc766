"""The argument ``model``: what it may be, and that a model file brings preprocessing, data set and features."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from prunegym.envs import MaskSimulator, MaskVecEnv, make_task
from prunegym.errors import InvalidInputError
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.data.normalisation import Normalisation
from prunegym.models.dynamic_cnn import DynamicCNN, shipped_model
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.gating.gate_policy import GatePolicy
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.storage.cnn_info import CNNInfo
from tests.envs.mask_oracle import ONE_STEP, random_masks


@pytest.fixture
def dynamic(cnn):
    """A model whose normalisation is not the data set's and whose features are not the standard ones."""
    masked, digits = MaskedCNN(cnn, torch.zeros(1, 1, 8, 8)), load_dataset("digits")
    info = dataclasses.replace(CNNInfo.of("simple-cnn", digits), normalisation=Normalisation((0.2,), (0.3,)))
    return DynamicCNN(masked, GatePolicy(MaskFeatures(masked, layerwise=True, grid=2)), info)


@pytest.mark.parametrize("stored", [False, True])
def test_a_dynamic_cnn_brings_its_preprocessing_data_set_and_features(dynamic, stored, tmp_path):
    dynamic.save(tmp_path / "model.safetensors")
    task = make_task(str(tmp_path / "model.safetensors") if stored else dynamic, split="test", layerwise=True)
    assert (task.dataset.name, task.dataset.split) == ("digits", "test")
    assert task.features.config["grid"] == 2
    if not stored:
        assert task.masked is dynamic.masked
        assert task.features is dynamic.policy.features
    env = MaskSimulator(task, 2, np.random.default_rng(0))
    env.reset([5, 6])
    for _ in range(2):
        result = env.step(np.ones((2, 32)))
    pixels = load_dataset("digits", "test").images[5:7]
    torch.testing.assert_close(result.outcome.logits, dynamic.masked((pixels / 255 - 0.2) / 0.3))


def test_features_for_other_decisions_are_new(dynamic):
    features = make_task(dynamic).features
    assert features.config["layerwise"] is False
    values = features(0, (load_dataset("digits").images / 255 - 0.2) / 0.3)
    torch.testing.assert_close(values[:, 0].mean(), torch.tensor(0.0), atol=0.05, rtol=0)


def test_by_default_the_shipped_model_is_played():
    task, shipped = make_task(), shipped_model("digits")
    assert (task.dataset.name, task.dataset.split, task.reward.name) == ("digits", "train", "l0")
    assert task.masked.mask_size == shipped.masked.mask_size
    assert task.penalty == 0.5 / task.masked.mask_size
    for name, weight in shipped.masked.state_dict().items():
        assert torch.equal(task.masked.state_dict()[name], weight)


def test_a_network_of_the_zoo_is_built_for_the_data_set():
    assert make_task("simple-cnn", "digits").masked.graph["images"].shape[1:] == (1, 8, 8)


def test_the_users_module_is_untouched_and_a_masked_cnn_is_shared(cnn):
    cnn.train()
    before = {name: tensor.clone() for name, tensor in cnn.state_dict().items()}
    env = MaskVecEnv(ONE_STEP, 4, model=cnn, dataset="digits")
    env.reset()
    env.step(random_masks(4).numpy())
    assert cnn.training
    assert all(parameter.requires_grad for parameter in cnn.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in cnn.state_dict().items())
    cnn.eval()
    masked = MaskedCNN(cnn, torch.zeros(1, 1, 8, 8))
    assert make_task(masked, "digits").masked is masked


def test_a_part_of_a_split(cnn):
    task = make_task(cnn, "digits", "test", images=7)
    assert len(task.dataset) == 7
    env = MaskSimulator(task, 7, np.random.default_rng(0))
    env.reset()
    assert sorted(env.indices.tolist()) == list(range(7))


def test_flip_mirrors_and_does_not_shift(cnn):
    digits = dataclasses.replace(load_dataset("digits", "train"), flip=True)
    task = make_task(cnn, digits, augment="flip")
    simulator = MaskSimulator(task, 64, np.random.default_rng(0))
    simulator.reset(range(64))
    original = digits.images[:64]
    same = (simulator.snapshot().images == original).flatten(1).all(1)
    mirrored = (simulator.snapshot().images == original.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 10 < int(mirrored.sum()) < 54


def test_an_augmentation_that_is_none(cnn):
    with pytest.raises(InvalidInputError, match=r"augment is 'shift'; True, False or 'flip' is allowed\."):
        make_task(cnn, "digits", augment="shift")


def test_classes_are_matched_by_name(dynamic):
    digits, names = load_dataset("digits"), tuple("abcdefghij")
    named = DynamicCNN(dynamic.masked, dynamic.policy, dataclasses.replace(dynamic.info, classes=names))
    backwards = dataclasses.replace(digits, classes=names[::-1], labels=9 - digits.labels)
    for dataset in (backwards, {"train": backwards, "test": backwards}):
        task = make_task(named, dataset)
        assert task.dataset.classes == names
        assert torch.equal(task.dataset.labels, digits.labels)
    other = dataclasses.replace(digits, classes=(*names[:9], "x"))
    with pytest.raises(InvalidInputError, match="has class 'x', which the model does not know; it knows a, b"):
        make_task(named, other)
