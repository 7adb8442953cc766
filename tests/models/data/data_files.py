"""What data set files are made of."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

RANDOM = np.random.default_rng(0)


def idx_bytes(array: np.ndarray) -> bytes:
    """Yann LeCun's description: two zero bytes, type 8, the number of dimensions, big-endian sizes, the data."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def arrays() -> dict[str, np.ndarray]:
    return {
        "train_images": RANDOM.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8),
        "train_labels": np.arange(20) % 4,
        "test_images": RANDOM.integers(0, 256, (8, 3, 8, 8), dtype=np.uint8),
        "test_labels": np.arange(8) % 4,
    }
