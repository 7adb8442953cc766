"""Says which folder is which package, and builds the optional compiled kernel; all else is in pyproject.toml.

The rooms `models`, `envs` and `agents` stand at the top of the repository. Links in `src/prunegym` show them to tools
that read files, but a zip or a clone may come without links, so the packages are named here.

The kernel is a plain shared library that ctypes loads. Its layer functions are compiled once for each vector width,
each file with its own flags, and the one that suits the processor is chosen at run time. Without a compiler, or with
one that lacks vector extensions, the package installs without it and runs on torch; PRUNEGYM_KERNEL_BUILD=off leaves it
out on purpose, and PRUNEGYM_KERNEL_BUILD=required makes a failed build an error. Build it again in a checkout with:

    python setup.py build_ext --inplace --force

PRUNEGYM_KERNEL_SANITIZE=1 builds it with AddressSanitizer and UBSan; .ci/kernel_sanitize does so, in a copy.
"""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError
from setuptools.modified import newer_group

ROOMS = ("models", "envs", "agents")
SOURCES = Path("models/kernel/csrc")
COMMON_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-pthread", "-g0", "-Wall", "-Wextra"]
# Bytes: results are the same bit for bit on every processor, so no product and sum are rounded as one.
BYTES = ["-ffp-contract=off"]
VNNI = [*BYTES, "-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx512vnni", "-mavx512vbmi", "-mavx512vbmi2"]
VNNI.append("-Wno-maybe-uninitialized")  # of gcc 12 in its own header
HALVES = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx512vbmi2", "-mavx512bf16", "-mfma"]
VARIANT_FLAGS = {
    "lanes8.cpp": ["-mavx2", "-mfma"],
    "lanes16.cpp": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mfma"],
    "bytes4.cpp": BYTES,
    "bytes8.cpp": [*BYTES, "-mavx2"],
    "avxvnni.cpp": [*BYTES, "-mavx2", "-mavxvnni"],
    "vnni.cpp": VNNI,
    "amx.cpp": [*VNNI, "-mamx-tile", "-mamx-int8"],
    "pairs8.cpp": ["-mavx2", "-mfma"],
    "avx512_bf16.cpp": HALVES,
    "amx_bf16.cpp": [*HALVES, "-mamx-tile", "-mamx-bf16"],
}
X86 = set(VARIANT_FLAGS) - {"bytes4.cpp"}
NEWEST = ("vnni.cpp", "avxvnni.cpp", "amx.cpp", "avx512_bf16.cpp", "amx_bf16.cpp")
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SANITIZE_FLAGS = [*SANITIZE, "-O1", "-g1", "-fno-omit-frame-pointer"]
WANTED = os.environ.get("PRUNEGYM_KERNEL_BUILD", "auto")


class BuildKernel(build_ext):
    """Compiles the sources side by side, each with its own flags."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link one extension."""
        sanitize = bool(os.environ.get("PRUNEGYM_KERNEL_SANITIZE"))
        flags = [*COMMON_FLAGS, *(SANITIZE_FLAGS if sanitize else [])]
        variants = dict(VARIANT_FLAGS)
        if platform.machine().lower() in ("x86_64", "amd64"):
            flags.append("-DPRUNEGYM_X86")
            if os.environ.get("PRUNEGYM_EMULATE_AVX512"):  # to test the logic of lanes16.cpp without the processor
                flags.append("-DPRUNEGYM_EMULATE_AVX512")
                for name, like in (
                    ("lanes16.cpp", "lanes8.cpp"),
                    ("vnni.cpp", "bytes8.cpp"),
                    ("amx.cpp", "bytes8.cpp"),
                    ("avx512_bf16.cpp", "pairs8.cpp"),
                    ("amx_bf16.cpp", "pairs8.cpp"),
                ):
                    variants[name] = [*variants[like], "-Wno-psabi"]
        else:
            ext.sources = [source for source in ext.sources if Path(source).name not in X86]

        for name in NEWEST:  # older compilers do not have these instructions
            if name in {Path(source).name for source in ext.sources} and not self._takes(variants[name]):
                flags.append(f"-DPRUNEGYM_WITHOUT_{Path(name).stem.upper()}")
                ext.sources = [source for source in ext.sources if Path(source).name != name]

        def build(source: str) -> str:
            (made,) = self.compiler.object_filenames([source], output_dir=self.build_temp)
            if self.force or newer_group([source, *ext.depends, __file__], made):
                own = variants.get(Path(source).name, [])
                self.compiler.compile([source], output_dir=self.build_temp, extra_postargs=flags + own)
            return str(made)

        # The widest vectors take the longest, so they come first.
        sources = sorted(ext.sources, key=lambda source: Path(source).name != "lanes16.cpp")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(build, sources))
        target = self.get_ext_fullpath(ext.name)
        link = ["-pthread", *(SANITIZE if sanitize else [])]
        self.compiler.link_shared_object(objects, target, extra_postargs=link, target_lang="c++")

    def _takes(self, flags: list[str]) -> bool:
        """Return whether the compiler knows some flags."""
        source = Path(self.build_temp) / "flags.cpp"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text("int main() { return 0; }\n")
        try:
            self.compiler.compile([str(source)], output_dir=self.build_temp, extra_postargs=flags)
        except CompileError:
            return False
        return True


def packages() -> list[str]:
    """Return all packages; those of the rooms from their own folders, whether there are links to them or not."""
    own = [name for name in find_packages("src") if name.split(".")[1:2] not in [[room] for room in ROOMS]]
    rooms = [f"prunegym.{room}" for room in ROOMS]
    inside = [f"prunegym.{room}.{name}" for room in ROOMS for name in find_packages(room)]
    return [*own, *rooms, *inside]


kernel = Extension(
    "prunegym.models.kernel._skipping",
    sources=sorted(str(path) for path in SOURCES.rglob("*.cpp")),
    depends=sorted(str(path) for path in SOURCES.rglob("*.h")),
    optional=WANTED != "required",
)
setup(
    packages=packages(),
    package_dir={"": "src", **{f"prunegym.{room}": room for room in ROOMS}},
    ext_modules=[] if WANTED == "off" else [kernel],
    cmdclass={"build_ext": BuildKernel},
)
