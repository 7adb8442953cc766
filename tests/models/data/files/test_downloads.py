"""Downloads through pooch, tried against a local file server; checksums decide."""

from __future__ import annotations

import functools
import gc
import gzip
import hashlib
import http.server
import re
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from prunegym.errors import MissingDataError
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.data.files import downloads
from prunegym.models.data.files.downloads import FILES, Download, find_file

# requests leaves the socket of a refused answer to the garbage collector; `collected` sees to it that it is within the
# test that opened it.
pytestmark = [
    pytest.mark.usefixtures("fresh_datasets", "collected"),
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]


@pytest.fixture
def collected() -> Iterator[None]:
    yield
    gc.collect()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and remembers what was asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    """A folder that a local server serves under ``PRUNEGYM_MIRROR``, and the paths it was asked for."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked: list[str] = []
    handler = functools.partial(type("Recorder", (Handler,), {"asked": asked}), directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PRUNEGYM_MIRROR", f"http://127.0.0.1:{server.server_address[1]}/")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(downloads, "SYSTEM_FOLDERS", ())
        yield folder, asked
        server.shutdown()


def serve_mnist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Write a small MNIST and put its checksums in place of the real ones; returns the test images."""
    random = np.random.default_rng(0)
    files = {}
    for part in ("train", "t10k"):
        images = random.integers(0, 256, (20, 28, 28), dtype=np.uint8)
        labels = (np.arange(20) % 10).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte.gz", images), (f"{part}-labels-idx1-ubyte.gz", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            data = gzip.compress(header + array.tobytes())
            (folder / name).write_bytes(data)
            files[name] = Download("http://unreachable.invalid/", "sha256:" + hashlib.sha256(data).hexdigest())
    assert files.keys() == FILES["mnist"].keys()
    monkeypatch.setitem(FILES, "mnist", files)
    return images


def test_download_once_then_from_disk(
    tmp_path: Path, mirror: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = mirror
    images = serve_mnist(folder, monkeypatch)
    root = tmp_path / "data"
    assert np.array_equal(load_dataset("mnist", "test", root).images[:, 0].numpy(), images)
    assert sorted(asked) == sorted("/" + name for name in FILES["mnist"])
    assert {path.name for path in (root / "mnist").iterdir()} == set(FILES["mnist"])
    first = len(asked)
    for name in FILES["mnist"]:
        assert find_file("mnist", name, root) == root / "mnist" / name
    assert len(asked) == first


def test_wrong_checksum(tmp_path: Path, mirror: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = mirror
    serve_mnist(folder, monkeypatch)
    name = "t10k-images-idx3-ubyte.gz"
    (folder / name).write_bytes((folder / name).read_bytes() + b"changed on the way")
    root = tmp_path / "data"
    with pytest.raises(MissingDataError, match=rf"^{re.escape(name)} of data set 'mnist' is not in .*mnist.*, "):
        find_file("mnist", name, root)
    assert not (root / "mnist" / name).exists(), "a wrong file must not be found by the next call"
    with pytest.raises(MissingDataError, match=r"hash of downloaded file .* does not match"):
        find_file("mnist", name, root)


def test_the_real_checksum_refuses_another_file(tmp_path: Path, mirror: tuple[Path, list[str]]) -> None:
    folder, _ = mirror
    (folder / "cifar-10-binary.tar.gz").write_bytes(b"some archive")
    with pytest.raises(MissingDataError, match=r"c32a1d4ab5d03f1284b67883e8d87530"):
        load_dataset("cifar10", root=tmp_path / "data")


def test_file_not_served(tmp_path: Path, mirror: tuple[Path, list[str]]) -> None:
    with pytest.raises(MissingDataError) as caught:
        load_dataset("cifar100", root=tmp_path)
    message = str(caught.value)
    assert message.startswith(
        f"cifar-100-binary.tar.gz of data set 'cifar100' is not in {tmp_path}, {tmp_path / 'cifar100'}, and the "
    )
    assert "404" in message
    assert message.endswith(
        "Put the file into one of these folders, set PRUNEGYM_DATA to the folder that has it, "
        "or set PRUNEGYM_MIRROR to an address that serves it."
    )


def test_server_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEGYM_MIRROR", "http://127.0.0.1:9")  # the discard port: nothing listens
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(MissingDataError, match=r"http://127\.0\.0\.1:9/cifar-10-binary\.tar\.gz failed"):
        load_dataset("cifar10", root=tmp_path)
