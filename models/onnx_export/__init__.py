"""Export to ONNX. The packages onnx (to write) and onnxruntime (to run) are optional: pip install 'prunegym[onnx]'."""

from __future__ import annotations

from prunegym.models.onnx_export.exporting import export_onnx

__all__ = ["export_onnx"]
