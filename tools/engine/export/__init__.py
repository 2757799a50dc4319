"""Networks as hybridized symbols and as ONNX, compared with the live one."""
