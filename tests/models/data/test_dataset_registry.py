"""Data sets by name and path: digits, files of one's own, names that are not known, splits."""

from __future__ import annotations

import dataclasses
import io
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from prunegym.errors import InvalidInputError, MissingDataError, UnknownNameError
from prunegym.models.data.dataset_registry import load_dataset, other_split
from prunegym.models.data.files.readers import array_file
from tests.models.data.data_files import arrays

pytestmark = pytest.mark.usefixtures("fresh_datasets")


def test_digits_are_those_of_sklearn_each_once() -> None:
    bundle = load_digits()
    pairs = zip(bundle.images, bundle.target, strict=True)
    expected = sorted((tuple(image.ravel().astype(int)), int(label)) for image, label in pairs)
    found = []
    for split in ("train", "validation", "test"):
        part = load_dataset("digits", split)
        assert part.image_shape == (1, 8, 8)
        grey = (part.images[:, 0].numpy() * (16 / 255)).round().astype(int)
        found += [(tuple(image.ravel()), int(label)) for image, label in zip(grey, part.labels, strict=True)]
    assert sorted(found) == expected


def test_digits_need_no_folder_and_come_in_a_fixed_order(tmp_path: Path) -> None:
    test = load_dataset("digits", "test", tmp_path / "nowhere")
    assert len(test) == 600
    assert test.labels[:10].tolist() == [6, 5, 5, 7, 9, 9, 8, 4, 6, 8]
    assert len(set(test.labels.tolist())) == 10


def test_array_file(tmp_path: Path) -> None:
    given = arrays()
    np.savez_compressed(tmp_path / "mine.npz", **given)
    for name in ("mine", "mine.npz", str(tmp_path / "mine.npz")):
        test = load_dataset(name, "test", tmp_path)
        assert np.array_equal(test.images.numpy(), given["test_images"])
        assert test.labels.tolist() == [0, 1, 2, 3] * 2
        assert test.name == "mine"


def test_bad_array_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **{key: value for key, value in arrays().items() if key != "test_labels"})
    message = (
        f"{path} has no 'test_labels'; it has ['test_images', 'train_images', 'train_labels'], and train_images, "
        "train_labels, test_images, test_labels are needed."
    )
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        array_file(path)
    np.savez(path, **arrays())
    whole = path.read_bytes()
    np.save(tmp_path / "plain.npy", np.zeros(3))
    objects = io.BytesIO()
    np.savez(objects, **{**arrays(), "train_labels": np.array([object()] * 20)})
    plain = (tmp_path / "plain.npy").read_bytes()
    for data in (b"", b"text", whole[:500], whole[:-30], plain, objects.getvalue()):
        path.write_bytes(data)
        with pytest.raises(InvalidInputError, match=r"mine\.npz is not an \.npz file of plain arrays \(.*\)\.$"):
            array_file(path)
    np.savez(path, **{**arrays(), "train_labels": np.array(["cat"] * 20)})
    with pytest.raises(InvalidInputError, match=r"mine\.npz: train_labels is of type <U3; an array of numbers is"):
        array_file(path)


def test_unknown_names(tmp_path: Path) -> None:
    known = "Known: cifar10, cifar100, digits, fashion-mnist, mnist."
    with pytest.raises(UnknownNameError) as caught:
        load_dataset("cifar-10", root=tmp_path)
    assert str(caught.value) == (
        f"Unknown data set 'cifar-10'. Did you mean 'cifar10'? {known} "
        f"There is no such folder, archive or .npz file here or in {tmp_path}."
    )
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(UnknownNameError, match=re.escape("Unknown data set ''. " + known)):
        load_dataset("")
    with pytest.raises(UnknownNameError) as caught:
        load_dataset("digits", "valid")
    assert str(caught.value) == "Unknown split 'valid'. Did you mean 'validation'? Known: test, train, validation."
    missing = tmp_path / "no" / "such"
    with pytest.raises(MissingDataError) as missed:
        load_dataset(str(missing))
    assert str(missed.value) == (
        f"There is no data set at {missing}. Give the path of a folder, a tar or zip archive, or an .npz file."
    )


def test_environment_variable_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "mine.npz", **arrays())
    with pytest.raises(UnknownNameError):
        load_dataset("mine", "test", tmp_path / "elsewhere")
    monkeypatch.setenv("PRUNEGYM_DATA", str(tmp_path))
    assert len(load_dataset("mine", "test")) == 8


def test_loaded_once() -> None:
    assert load_dataset("digits", "test").images is load_dataset("digits", "test").images


def test_another_split_is_of_the_same_data_set_or_refused() -> None:
    few = load_dataset("digits", "test").sample(40)
    assert other_split(few, "train", "train=") is load_dataset("digits", "train")
    message = "The train images of data set '{}' are needed, {}. Pass train="
    cases = {
        "mine": "but no data set with this name can be loaded",
        "digits": "but the data set that has this name has other test images",
    }
    for name, reason in cases.items():
        own = dataclasses.replace(few, name=name, images=255 - few.images)
        with pytest.raises(InvalidInputError, match=f"^{re.escape(message.format(name, reason))}"):
            other_split(own, "train", "train=")


def test_relative_paths_mean_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    for name in ("one", "two"):
        (tmp_path / name / "root").mkdir(parents=True)
        given[name] = arrays()
        for path in ("mine.npz", "root/its.npz"):
            np.savez(tmp_path / name / path, **given[name])
    for name in ("one", "two", "one"):
        monkeypatch.chdir(tmp_path / name)
        for test in (load_dataset("mine", "test"), load_dataset("its", "test", "root")):
            assert np.array_equal(test.images.numpy(), given[name]["test_images"])
    assert load_dataset("mine", "test").images is load_dataset(str(tmp_path / "one" / "mine.npz"), "test").images
