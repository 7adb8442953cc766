"""Files of public data sets, found on disk or downloaded and checked."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from prunegym.errors import MissingDataError

SYSTEM_FOLDERS = (Path("/usr/share/datasets"),)


@dataclasses.dataclass(frozen=True)
class Download:
    """A file of a public data set: its address (without the file name) and its checksum."""

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
    """Return the path of a data set's file. If it is not on disk, it is downloaded.

    Args:
        dataset: A key of :data:`FILES`.
        file: Name of the file.
        root: Folder in which the file is searched first, also in the subfolder with the data set's name.

    Raises:
        MissingDataError: If the file is not found and cannot be downloaded, or the download has a wrong checksum.
    """
    folders = [folder for base in ((root,) if root else ()) for folder in (base, base / dataset)]
    folders += [base / dataset for base in SYSTEM_FOLDERS]
    for folder in folders:
        for name in (file, file.removesuffix(".gz")):
            if (folder / name).is_file():
                return folder / name
    import pooch

    source = FILES[dataset][file]
    # A mirror serves the same files, so the checksums are the same.
    url = os.environ.get("PRUNEGYM_MIRROR", source.url).rstrip("/") + "/" + file
    cache = pooch.os_cache("prunegym") if root is None else root
    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(pooch.retrieve(url, known_hash=source.checksum, fname=file, path=Path(cache) / dataset))
    except (OSError, ValueError) as error:
        raise MissingDataError(
            f"{file} of data set {dataset!r} is not in {', '.join(map(str, folders))}, and the download from {url} "
            f"failed ({error}). Put the file into one of these folders, set PRUNEGYM_DATA to the folder that has it, "
            "or set PRUNEGYM_MIRROR to an address that serves it."
        ) from error
