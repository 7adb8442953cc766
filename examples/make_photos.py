"""Make a folder of JPEGs of mixed sizes, like photographs, to try commands on a folder of images.

    python examples/make_photos.py photos --images 2000
    prunegym train-cnn resnet18 --dataset photos --image-size 64 --out runs/photos --epochs 2

Four classes that a small network learns: discs, rings, stripes and squares, on soft backgrounds with noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("disc", "ring", "square", "stripes")
SPLITS = {"train": 0.7, "val": 0.1, "test": 0.2}
ORIENTATION = 0x0112  # the EXIF tag


def photo(label: str, height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """Return an image (height, width, 3) uint8 of a class."""
    rows, columns = np.mgrid[:height, :width]
    slope = rows[..., None] / height * random.uniform(-80, 80, 3) + columns[..., None] / width * random.uniform(
        -80, 80, 3
    )
    background = random.uniform(60, 190, 3) + slope
    side = min(height, width)
    row, column = random.uniform(0.35, 0.65, 2) * (height, width)
    size = random.uniform(0.2, 0.34) * side
    distance = np.hypot(rows - row, columns - column)
    inside = {
        "disc": distance < size,
        "ring": np.abs(distance - size) < size / 4,
        "square": np.maximum(np.abs(rows - row), np.abs(columns - column)) < size,
        "stripes": (columns + rows * random.uniform(-0.3, 0.3)) % (side / 5) < side / 10,
    }[label]
    colour = (background.mean((0, 1)) + random.choice([-90, 90], 3)).clip(0, 255)
    pixels = np.where(inside[..., None], colour, background) + random.normal(0, 12, (height, width, 1))
    return pixels.clip(0, 255).astype(np.uint8)


def make_photos(folder: Path, images: int, seed: int = 0, sides: tuple[int, int] = (180, 420), links: int = 1) -> None:
    """Write ``<split>/<class>/<number>.jpg``; every tenth is turned by its EXIF data, every twentieth grey.

    Args:
        folder: Folder to write to.
        images: Number of images in all classes and splits.
        seed: Seed of the random numbers.
        sides: Smallest and largest side; two equal numbers give images of one size.
        links: Number of hard links to each file, which make a large data set in little time.
    """
    random = np.random.default_rng(seed)
    for split, share in SPLITS.items():
        for label in CLASSES:
            place = folder / split / label
            place.mkdir(parents=True, exist_ok=True)
            for number in range(round(images * share / len(CLASSES) / links)):
                height, width = random.integers(sides[0], sides[1] + 1, 2)
                image = Image.fromarray(photo(label, height, width, random))
                exif = image.getexif()
                if number % 10 == 3 and sides[0] != sides[1]:
                    exif[ORIENTATION] = 6
                image = image.convert("L") if number % 20 == 7 else image
                path = place / f"{number:05}.jpg"
                image.save(path, quality=88, exif=exif)
                for copy in range(1, links):
                    link = place / f"{number:05}-{copy}.jpg"
                    link.unlink(missing_ok=True)
                    link.hardlink_to(path)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--sides", type=int, nargs=2, default=(180, 420), metavar=("FROM", "TO"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make_photos(options.folder, options.images, options.seed, tuple(options.sides))


if __name__ == "__main__":
    main()
