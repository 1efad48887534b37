"""Operators of our own for ONNX Runtime on a CPU, and what this machine can run of them."""
