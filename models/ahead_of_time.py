"""Compiling a function of tensors to C++ before it runs, by TorchInductor."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn


def compile_ahead(run: Callable[..., Sequence[Tensor]], example: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Return a function as code that calls its layers from C++, one call of Python for all of them.

    ``torch.compile`` calls each layer from Python: on a small network that takes about as long as the layer itself.

    Args:
        run: From tensors to tensors; what else it reads is constant. Number of images and threads become constants too.
        example: Its arguments. Later ones have the same shapes, dtypes and layout in memory: nothing checks them.

    Returns:
        The function, for inference only.
    """
    from torch import _inductor  # not at the top: its import alone takes a second

    with torch.inference_mode(False), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        exported = torch.export.export(FunctionModule(run), tuple(value.clone() for value in example))
        package = _inductor.aoti_compile_and_package(
            exported, package_path=str(Path(folder) / "model.pt2"), inductor_configs={"freezing": True}
        )
        loaded = _inductor.aoti_load_package(package)
    # Without the unpacking of nested arguments in its own call, which takes longer than a layer.
    return lambda *values: loaded.loader.run(list(values))


class FunctionModule(nn.Module):
    """A function of tensors as the module that torch's exporter and tracer want."""

    def __init__(self, run: Callable[..., Sequence[Tensor]]) -> None:
        super().__init__()
        self._run = run

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Return what the function does."""
        return tuple(self._run(*values))
