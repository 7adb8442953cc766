"""The dtype of new tensors, independent of torch's default, which a program may set, for example to float64."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def new_tensors_in(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Make new tensors and modules of this dtype: a context manager, or a decorator of a function."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
