"""The contents of an image folder, or of a tar or zip archive of one."""

from __future__ import annotations

import dataclasses
import tarfile
import zipfile
from pathlib import Path

from prunegym.errors import InvalidInputError
from prunegym.models.data.files.bounded_files import BROKEN, check_members, check_regular
from prunegym.models.data.files.decoding import Source
from prunegym.models.data.files.readers import plain_name, tar_members

IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jp2", ".j2k", ".jpx", ".jpf", ".avif", ".mpo", ".apng", ".dib", ".tga", ".pcx",
}  # fmt: skip
OTHER_SUFFIXES = {
    ".heic", ".heif", ".hif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw", ".psd",
    ".svg", ".exr", ".hdr", ".dcm",
}  # fmt: skip
"""Images of phones, cameras and programs that Pillow alone does not read."""
TAR_SUFFIXES = {".tar", ".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz"}
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
"""What operating systems and network storage put between files; ``@eaDir`` has small copies of images."""

HIDDEN, NO_IMAGE, OTHER_FORMAT, ELSEWHERE, SPECIAL, EMPTY = (
    "hidden", "not an image by its name", "of a format that is not read: convert it to JPEG or PNG",
    "not at <split>/<class>/<image>", "a link to a folder above, or no file", "an empty folder",
)  # fmt: skip
"""Reasons why something is left out."""


@dataclasses.dataclass
class Contents:
    """The contents of a folder or an archive.

    Attributes:
        files: Contents or path of each file, by its path from the top.
        broken: Links whose target does not exist, with the target.
        left_out: Paths of files and folders that are not read, by reason.
    """

    files: dict[str, Source] = dataclasses.field(default_factory=dict)
    broken: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def leave_out(self, reason: str, name: str) -> None:
        """Note that something is not read."""
        self.left_out.setdefault(reason, []).append(name)


def contents_of(path: Path) -> Contents:
    """Return the contents of a folder, or of a tar or zip archive. Links are followed.

    Raises:
        InvalidInputError: If a folder cannot be read, or an archive is damaged.
    """
    if path.is_dir():
        return _of_folder(path)
    ending = check_regular(path, "folder or archive of images").suffix.lower()
    if ending == ".zip" or zipfile.is_zipfile(path):
        return _of_zip(path)
    if ending in TAR_SUFFIXES or _is_tar(path):
        return _of_tar(path)
    raise InvalidInputError(
        f"{path} is neither a tar nor a zip archive, nor an .npz file. Unpack other archives, and give the folder. For "
        "other forms, such as tables of paths, make a data set in Python: from_arrays and image_files."
    )


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def not_read(name: str) -> str:
    """Return why a file is left out that is not an image by its name."""
    return OTHER_FORMAT if Path(name).suffix.lower() in OTHER_SUFFIXES else NO_IMAGE


def is_hidden(step: str) -> bool:
    """Whether a file or folder is hidden by its name, or is one of :data:`SYSTEM_FOLDERS`."""
    return step.startswith(".") or step in SYSTEM_FOLDERS


def _of_folder(path: Path) -> Contents:
    found = Contents()
    if path.resolve() == Path(path.anchor or "/"):
        raise InvalidInputError(f"{path} is the whole file system. Give the folder of the images.")
    # Folders to read, each with its path from the top and the folders above it: a link may lead back to one of them.
    waiting: list[tuple[Path, str, frozenset[Path]]] = [(path, "", frozenset())]
    while waiting:
        folder, inside, above = waiting.pop()
        try:
            real = folder.resolve()
            if real in above:
                found.leave_out(SPECIAL, inside.rstrip("/"))
                continue
            entries = list(folder.iterdir())
            if not entries and inside:
                found.leave_out(EMPTY, inside.rstrip("/"))
            for entry in entries:
                name = f"{inside}{entry.name}"
                if is_hidden(entry.name):
                    if inside:
                        found.leave_out(HIDDEN, name)
                elif entry.is_dir():
                    waiting.append((entry, f"{name}/", above | {real}))
                elif entry.is_file():
                    found.files[name] = entry
                elif entry.is_symlink():
                    found.broken[name] = str(entry.readlink())
                else:
                    found.leave_out(SPECIAL, name)
        except OSError as error:
            raise InvalidInputError(
                f"The folder {folder} cannot be read ({error.strerror}). Allow reading it, or move it elsewhere."
            ) from error
    return found


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except BROKEN:
        return False


def _of_tar(path: Path) -> Contents:
    files, broken, others = tar_members(path, is_image)
    return Contents({**dict.fromkeys(others, b""), **files}, broken)


def _of_zip(path: Path) -> Contents:
    found = Contents()
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path.stat().st_size, lambda name: is_image(plain_name(name)))
            for member in archive.infolist():
                stated = member.filename.replace("\\", "/")  # as some programs for Windows write paths
                name = plain_name(stated)
                if not stated.endswith("/"):
                    found.files[name] = archive.read(member) if is_image(name) else b""
    except (zipfile.BadZipFile, RuntimeError, *BROKEN) as error:
        raise InvalidInputError(
            f"{path} cannot be read as a zip archive ({error}). It may be truncated: copy or pack it again."
        ) from error
    return found
