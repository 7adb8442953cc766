"""Export to ONNX. The packages onnx (to write) and onnxruntime (to run) are optional: pip install 'prunegym[onnx]'."""
