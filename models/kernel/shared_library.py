"""Finding and loading the shared library, and the C structures that it takes."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import os
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch

from prunegym.errors import InvalidInputError, MissingDependencyError, PruneGymError

KINDS = (
    "load", "conv", "max_pool", "add", "subsample", "average", "linear", "depthwise", "avg_pool", "place", "scale",
    "expand", "compensate", "convert", "decide", "look", "store",
)  # fmt: skip
ACTIVATIONS = ("", "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu")
"""What may follow a layer's sums; the first is nothing."""
ERROR_SIZE = 256
INTERFACE = 10
"""Of the functions in csrc/api.cpp."""
MAX_PIXELS, MAX_CHANNELS, MAX_IMAGES, MAX_THREADS = 2**27, 2**20, 2**24, 1024
"""Limits of csrc/common.h: pixels of one channel of a map, channels, images of a batch, and threads."""


class KernelError(PruneGymError, MemoryError):
    """The kernel could not store or run a network, nearly always because memory is too small."""


class BufferRecord(ctypes.Structure):
    """Memory for a map: csrc/plan.h, ``BufferRecord``."""

    _fields_ = [(name, c_int32) for name in ("channels", "height", "width", "stride", "zero")]


class ValueRecord(ctypes.Structure):
    """A map or vector between layers: csrc/plan.h, ``ValueRecord``."""

    _fields_ = [*((name, c_int32) for name in ("buffer", "channels", "space", "zero")), ("scale", c_float)]


class SpaceRecord(ctypes.Structure):
    """Channels with the places of their mask bits: csrc/plan.h, ``SpaceRecord``."""

    _fields_ = [("channels", c_int32), ("index", POINTER(c_int32))]


_WINDOW = ("kernel", "kernel_width", "stride", "padding", "padding_width", "dilation", "groups", "activation")
_LAYER = ("kind", "input", "second", "output", "biases", *_WINDOW, "offset", "ceil")
_POLICY = ("gate", "average", "grid", "hidden")
ARRAYS = ("weight", "bias", "weight2", "bias2", "mean", "scale")


class LayerRecord(ctypes.Structure):
    """A layer: csrc/plan.h, ``LayerRecord``."""

    _fields_ = [(n, c_int32) for n in (*_LAYER, *_POLICY)] + [(n, POINTER(c_float)) for n in ARRAYS]


class NetworkRecord(ctypes.Structure):
    """A whole network: csrc/plan.h, ``NetworkRecord``."""

    _fields_ = [
        *((f"{name}_count", c_int32) for name in ("buffer", "value", "gate", "space", "layer")),
        *(("buffers", POINTER(BufferRecord)), ("values", POINTER(ValueRecord)), ("widths", POINTER(c_int32))),
        *(("spaces", POINTER(SpaceRecord)), ("layers", POINTER(LayerRecord))),
    ]


class Images(ctypes.Structure):
    """Images with their layout in memory: csrc/plan.h, ``Images``."""

    _fields_ = [("data", c_void_p), *((name, c_int64) for name in ("image", "channel", "row", "column"))]


FUNCTIONS: dict[str, tuple[type | None, list[Any]]] = {
    "use_openmp": (None, [c_void_p]),
    "plan_new": (c_void_p, [c_char_p, c_char_p, c_char_p, POINTER(NetworkRecord), c_char_p]),
    "plan_free": (None, [c_void_p]),
    "plan_run": (c_int, [c_void_p, c_int, POINTER(Images), c_void_p, c_void_p, c_int, POINTER(c_double), c_char_p]),
    "pass_new": (c_void_p, [c_void_p, c_int, c_int, c_char_p]),
    "pass_free": (None, [c_void_p]),
    "pass_begin": (c_int, [c_void_p, POINTER(Images), c_void_p, c_int, c_char_p]),
    "pass_advance": (c_int, [c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_char_p]),
}
"""Result and arguments of the functions in csrc/api.cpp, whose names begin with ``prunegym_``."""
VARIANTS = {
    "variants": ("Kernel variant", "PRUNEGYM_KERNEL"),
    "variants_on_bytes": ("int8 variant", "PRUNEGYM_INT8"),
    "variants_on_pairs": ("bfloat16 variant", "PRUNEGYM_BFLOAT16"),
}
"""The functions that list the compiled variants, by what these compute with: what it is called, and the environment
variable that chooses one."""


@functools.lru_cache(maxsize=1)
def load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and the reason."""
    if os.environ.get("PRUNEGYM_KERNEL") == "off":
        return None, "it is switched off by the environment variable PRUNEGYM_KERNEL=off"
    folder = Path(__file__).parent
    paths = [folder / f"_skipping{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    found = [path for path in paths if path.exists()]
    if not found:
        return None, (
            "it was not built: a C++17 compiler (g++ or clang++) is needed when prunegym is installed. "
            "Install one and run `pip install --force-reinstall --no-deps prunegym`, or in a checkout "
            "`python setup.py build_ext --inplace`"
        )
    try:
        library = ctypes.CDLL(str(found[0]))
        for name in VARIANTS:
            getattr(library, f"prunegym_{name}").restype = c_char_p
        known = (library.prunegym_interface(), library.prunegym_record_size())
        if known != (INTERFACE, ctypes.sizeof(LayerRecord)):
            return None, f"{found[0]} was built for another version of prunegym; rebuild it"
    except (OSError, AttributeError) as error:
        return None, f"{found[0]} cannot be loaded ({error})"
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, f"prunegym_{name}")
        function.restype, function.argtypes = result, arguments
    library.prunegym_use_openmp(openmp())
    return library, ""


def openmp() -> int | None:
    """Address of the entry point of torch's own OpenMP library, if it is GNU's; other packages may have loaded more."""
    torch_library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # A symbol is searched in a library and in the libraries that it was linked with.
        return ctypes.cast(ctypes.CDLL(str(torch_library)).GOMP_parallel, c_void_p).value
    except (OSError, AttributeError):
        return None


def available() -> bool:
    """Whether the compiled kernel was built and can be loaded."""
    return load()[0] is not None


def unavailable_reason() -> str:
    """Why the kernel is not available; empty if it is."""
    return load()[1]


def variants() -> tuple[str, ...]:
    """Names of the compiled variants that this processor runs, best first: ``avx512``, ``avx2``, ``generic``.

    Empty if the kernel is not available.
    """
    return _runnable("variants")


def byte_variants() -> tuple[str, ...]:
    """Names of those for int8: ``amx``, ``vnni``, ``bytes8``..."""
    return _runnable("variants_on_bytes")


def bfloat16_variants() -> tuple[str, ...]:
    """Names of those for bfloat16: ``amx_bf16``, ``avx512_bf16``, ``pairs8``..."""
    return _runnable("variants_on_pairs")


def _runnable(function: str) -> tuple[str, ...]:
    library = load()[0]
    return tuple(getattr(library, f"prunegym_{function}")().decode().split(",")) if library is not None else ()


def library() -> Any:
    """Return the loaded library.

    Raises:
        MissingDependencyError: If it is not available, saying why.
    """
    loaded, reason = load()
    if loaded is None:
        raise MissingDependencyError(f"The compiled kernel is not available: {reason}.")
    return loaded


def choose_variants(names: Sequence[str | None]) -> list[str]:
    """Check names of variants for floats, int8 and bfloat16.

    Args:
        names: None means the environment variable PRUNEGYM_KERNEL, PRUNEGYM_INT8 or PRUNEGYM_BFLOAT16, or else the
            best.

    Raises:
        InvalidInputError: If a variant cannot run here.
    """
    library()
    chosen = []
    for name, (function, (what, variable)) in zip(names, VARIANTS.items(), strict=True):
        known = _runnable(function)
        chosen.append(name or os.environ.get(variable) or known[0])
        if chosen[-1] not in known:
            raise InvalidInputError(f"{what} {chosen[-1]!r} cannot run here; these can: {', '.join(known)}.")
    return chosen


FLOATS, PAIRS = -1, -2
"""In place of the byte that means zero: the numbers of a value are floats, or bfloat16."""
