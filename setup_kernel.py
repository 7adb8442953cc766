"""Builds the optional compiled kernel in place: ``python setup_kernel.py build_ext --inplace``.

The kernel is a plain shared library that ctypes loads. Its layer functions are compiled once for each vector width,
each file with its own flags, and the one that suits the processor is chosen at run time. ``pip install`` does not
build it yet: nothing runs on it until it stands behind MaskedCNN, and its compilation takes over a minute.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

SOURCES = Path("models/kernel/csrc")
COMMON_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-pthread", "-g0", "-Wall", "-Wextra"]
VARIANT_FLAGS = {
    "lanes8.cpp": ["-mavx2", "-mfma"],
    "lanes16.cpp": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mfma"],
}


class BuildKernel(build_ext):
    """Compiles each source with its own flags."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link one extension."""
        flags = list(COMMON_FLAGS)
        variants = dict(VARIANT_FLAGS)
        if platform.machine().lower() in ("x86_64", "amd64"):
            flags.append("-DPRUNEGYM_X86")
            if os.environ.get("PRUNEGYM_EMULATE_AVX512"):  # to test the logic of lanes16.cpp without the processor
                flags.append("-DPRUNEGYM_EMULATE_AVX512")
                variants["lanes16.cpp"] = [*variants["lanes8.cpp"], "-Wno-psabi"]
        else:
            ext.sources = [source for source in ext.sources if Path(source).name not in variants]
        objects: list[str] = []
        for source in ext.sources:
            made = self.compiler.object_filenames([source], output_dir=self.build_temp)
            if self.force or newer_group([source, *ext.depends, __file__], made[0]):
                own = variants.get(Path(source).name, [])
                self.compiler.compile([source], output_dir=self.build_temp, extra_postargs=flags + own)
            objects += made
        target = self.get_ext_fullpath(ext.name)
        self.compiler.link_shared_object(objects, target, extra_postargs=["-pthread"], target_lang="c++")


setup(
    ext_modules=[
        Extension(
            "prunegym.models.kernel._skipping",
            sources=sorted(str(path) for path in SOURCES.glob("*.cpp")),
            depends=sorted(str(path) for path in SOURCES.glob("*.h")),
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernel},
)
