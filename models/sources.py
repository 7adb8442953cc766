"""Where data sets come from: embedded digits, IDX files, CIFAR archives, image folders, array files."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunegym.models.data import SPLITS, Dataset, Normalisation, Split, from_arrays
from prunegym.models.errors import InvalidInputError, MissingDataError, UnknownNameError

Splits = dict[Split, Dataset]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
SYSTEM_FOLDERS = (Path("/usr/share/datasets"),)
DIGITS_TEST_IMAGES = 600


def _digits(_root: Path | None) -> Splits:
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = torch.from_numpy(np.rint(bundle.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bundle.target.astype(np.int64))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[:DIGITS_TEST_IMAGES], order[DIGITS_TEST_IMAGES:]
    return from_arrays((images[train], labels[train]), (images[test], labels[test]), name="digits", pad=1)


@dataclasses.dataclass(frozen=True)
class Download:
    """A file of a public data set: where it is, and the checksum that it must have."""

    url: str
    checksum: str


MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"

FILES: dict[str, dict[str, Download]] = {
    "mnist": {
        "train-images-idx3-ubyte.gz": Download(MNIST_URL, "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        "train-labels-idx1-ubyte.gz": Download(MNIST_URL, "md5:d53e105ee54ea40749a09fcbcd1e9432"),
        "t10k-images-idx3-ubyte.gz": Download(MNIST_URL, "md5:9fb629c4189551a2d022fa330f9573f3"),
        "t10k-labels-idx1-ubyte.gz": Download(MNIST_URL, "md5:ec29112dd5afa0611ce80d1b7f02629c"),
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": Download(FASHION_URL, "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        "train-labels-idx1-ubyte.gz": Download(FASHION_URL, "md5:25c81989df183df01b3e8a0aad5dffbe"),
        "t10k-images-idx3-ubyte.gz": Download(FASHION_URL, "md5:bef4ecab320f06d8554ea6380940ec79"),
        "t10k-labels-idx1-ubyte.gz": Download(FASHION_URL, "md5:bb300cfdad3c16e7a12a480ee83cd310"),
    },
    "cifar10": {"cifar-10-binary.tar.gz": Download(CIFAR_URL, "md5:c32a1d4ab5d03f1284b67883e8d87530")},
    "cifar100": {"cifar-100-binary.tar.gz": Download(CIFAR_URL, "md5:03b5dce01913d631647c71ecec9e9cb8")},
}


def find_file(dataset: str, file: str, root: Path | None) -> Path:
    """Return the path of a data set's file: under the root, in the system's folders, else downloaded and checked.

    Args:
        dataset: A key of :data:`FILES`.
        file: Its file.
        root: Folder to look in, and in its subfolder named as the data set.

    Raises:
        MissingDataError: If the file is nowhere and cannot be downloaded, or has another checksum.
    """
    folders = [folder for base in ((root,) if root else ()) for folder in (base, base / dataset)]
    folders += [base / dataset for base in SYSTEM_FOLDERS]
    for folder in folders:
        for name in (file, file.removesuffix(".gz")):
            if (folder / name).is_file():
                return folder / name
    import pooch

    source = FILES[dataset][file]
    # A mirror serves the same files, so their checksums hold.
    url = os.environ.get("PRUNEGYM_MIRROR", source.url).rstrip("/") + "/" + file
    cache = pooch.os_cache("prunegym") if root is None else root
    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(pooch.retrieve(url, known_hash=source.checksum, fname=file, path=Path(cache) / dataset))
    except (OSError, ValueError) as error:
        raise MissingDataError(
            f"{file} of data set {dataset!r} is not in {[str(folder) for folder in folders]} and {url} gave no valid "
            f"copy ({error}). Put the file into one of these folders, set PRUNEGYM_DATA to the folder that has it, "
            "or PRUNEGYM_MIRROR to an address that serves it."
        ) from error


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Returns:
        uint8, of the shape that the file states.

    Raises:
        InvalidInputError: If the file is damaged or holds another type.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise InvalidInputError(f"{path} is not a whole gzip file ({error}). Was it downloaded whole?") from error
    dimensions = data[3] if len(data) > 3 and data[:3] == b"\x00\x00\x08" else 0
    start = 4 + 4 * dimensions
    shape = np.frombuffer(data[4:start], dtype=">u4").astype(int)
    if dimensions == 0 or len(data) - start != int(shape.prod()):
        raise InvalidInputError(f"{path} is not an IDX file of unsigned bytes. Was it downloaded whole?")
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape).copy())


def _idx(dataset: str, normalisation: Normalisation, classes: tuple[str, ...], flip: bool, root: Path | None) -> Splits:
    def part(prefix: str) -> tuple[Tensor, Tensor]:
        images = read_idx(find_file(dataset, f"{prefix}-images-idx3-ubyte.gz", root)).unsqueeze(1)
        return images, read_idx(find_file(dataset, f"{prefix}-labels-idx1-ubyte.gz", root)).long()

    return from_arrays(
        part("train"), part("t10k"), name=dataset, classes=classes, normalisation=normalisation, pad=2, flip=flip
    )


def _cifar(dataset: str, root: Path | None) -> Splits:
    """Read the official binary archives; the pickled ones would execute code on load."""
    label_bytes = 1 if dataset == "cifar10" else 2
    (file,) = FILES[dataset]
    path = find_file(dataset, file, root)
    members = dict(_tar_members(path))
    names = next((data for name, data in members.items() if name.endswith(("batches.meta.txt", "fine_label_names.txt"))))

    def part(prefixes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        chosen = [members[name] for name in sorted(members) if Path(name).name.startswith(prefixes)]
        rows = np.frombuffer(b"".join(chosen), dtype=np.uint8).reshape(-1, label_bytes + 3072)
        labels = torch.from_numpy(rows[:, label_bytes - 1].astype(np.int64))
        return torch.from_numpy(rows[:, label_bytes:].reshape(-1, 3, 32, 32).copy()), labels

    train = part(("data_batch_",) if dataset == "cifar10" else ("train.bin",))
    test = part(("test_batch.bin",) if dataset == "cifar10" else ("test.bin",))
    classes = tuple(names.decode().split())
    return from_arrays(train, test, name=dataset, classes=classes, pad=4, flip=True)


def _tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None:
                    yield member.name, stream.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InvalidInputError(f"{path} is not a whole tar archive ({error}). Was it copied whole?") from error


def _folder_members(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in path.rglob("*"):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            yield file.relative_to(path).as_posix(), file.read_bytes()


def image_folder(path: Path) -> Splits:
    """Read ``train/<class>/<image>`` and ``test/<class>/<image>`` from a folder or a tar archive of one.

    The order is that of the sorted paths, so that an index means the same image everywhere.

    Raises:
        InvalidInputError: If a part is missing, an image cannot be read, or sizes or classes differ.
    """
    members = _folder_members(path) if path.is_dir() else _tar_members(path)
    parts: dict[str, list[tuple[str, str, bytes]]] = {"train": [], "test": []}
    for name, data in members:
        steps = [step for step in name.split("/") if step != "."]
        if Path(name).suffix.lower() in IMAGE_SUFFIXES and len(steps) >= 3 and steps[-3] in parts:
            parts[steps[-3]].append((steps[-2], steps[-1], data))
    for part, files in parts.items():
        if not files:
            raise InvalidInputError(f"{path} has no images under {part}/<class>/. Both train and test are needed.")
    classes = tuple(sorted({label for label, _, _ in parts["train"]}))
    train, test = (_decode(path, part, classes, parts[part]) for part in ("train", "test"))
    name = path.name.split(".")[0]
    return from_arrays(train, test, name=name, classes=classes, flip=True)


def _decode(path: Path, part: str, classes: tuple[str, ...], files: list[tuple[str, str, bytes]]) -> tuple[Tensor, Tensor]:
    from PIL import Image, UnidentifiedImageError

    images: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    labels: list[int] = []
    for label, file, data in sorted(files, key=lambda entry: entry[:2]):
        if label not in classes:
            raise InvalidInputError(f"{path}/{part} has class {label!r}, which train has not: {', '.join(classes)}.")
        try:
            image = Image.open(io.BytesIO(data))
            pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise InvalidInputError(f"{path}/{part}/{label}/{file} cannot be read as an image ({error}).") from error
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if images and pixels.shape != images[0].shape:
            raise InvalidInputError(
                f"{path}/{part}/{label}/{file} is {pixels.shape}, the images before it are {images[0].shape} "
                "(channels, height, width). Bring all images to one size first."
            )
        images.append(pixels)
        labels.append(classes.index(label))
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def array_file(path: Path) -> Splits:
    """Read an ``.npz`` file with train_images, train_labels, test_images and test_labels, images channels first.

    Raises:
        InvalidInputError: If an array is missing or has the wrong form.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} is not an .npz file of plain arrays ({error}).") from error
    keys = ("train_images", "train_labels", "test_images", "test_labels")
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise InvalidInputError(f"{path} has no {missing[0]!r}; it has {sorted(arrays)}, and {', '.join(keys)} are needed.")
    train, test = (arrays[keys[0]], arrays[keys[1]]), (arrays[keys[2]], arrays[keys[3]])
    return from_arrays(train, test, name=path.stem)


_DIGIT_NAMES = tuple("0123456789")
_FASHION_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

SOURCES: dict[str, Callable[[Path | None], Splits]] = {
    "digits": _digits,
    "mnist": functools.partial(_idx, "mnist", Normalisation((0.1307,), (0.3081,)), _DIGIT_NAMES, False),
    "fashion-mnist": functools.partial(
        _idx, "fashion-mnist", Normalisation((0.2860,), (0.3530,)), _FASHION_NAMES, True
    ),
    "cifar10": functools.partial(_cifar, "cifar10"),
    "cifar100": functools.partial(_cifar, "cifar100"),
}


def load_dataset(name: str, split: str = "train", root: Path | str | None = None) -> Dataset:
    """Load one split of a data set by name or path.

    Args:
        name: A key of :data:`SOURCES` (``digits`` is embedded); a path to a folder or tar archive with
            ``train/<class>/<image>`` and ``test/<class>/<image>``, or to an ``.npz`` file; or the name, with or without
            its ending, of such a folder, archive or file under ``root``.
        split: ``train``, ``validation`` or ``test``.
        root: Folder with the files of data sets; by default the environment variable ``PRUNEGYM_DATA``.

    Returns:
        The split; loaded once per process and shared, so do not write to its tensors.

    Raises:
        UnknownNameError: For an unknown name or split.
        MissingDataError: If files are missing and cannot be downloaded.
        InvalidInputError: If files are damaged or of the wrong form.

    Example:
        >>> {split: len(load_dataset("digits", split)) for split in SPLITS}
        {'train': 1077, 'validation': 120, 'test': 600}
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    folder = root if root is not None else os.environ.get("PRUNEGYM_DATA")
    return _load(str(name), Path(folder).expanduser() if folder else None)[split]


@functools.lru_cache(maxsize=4)
def _load(name: str, root: Path | None) -> Splits:
    if name in SOURCES:
        return SOURCES[name](root)
    bases = [Path(name).expanduser()] + ([root / name] if root else [])
    for path in (base.with_name(base.name + ending) for base in bases for ending in ("", ".tar.gz", ".tar", ".npz")):
        if path.suffix == ".npz" and path.is_file():
            return array_file(path)
        if path.exists():
            return image_folder(path)
    if os.sep in name or name.startswith("~"):
        raise MissingDataError(f"There is no data set at {name}. Give a folder, a tar archive or an .npz file.")
    raise UnknownNameError("data set (nor a file of that name under PRUNEGYM_DATA)", name, SOURCES)


