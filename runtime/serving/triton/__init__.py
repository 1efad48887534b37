"""Triton Inference Server: the model that its Python backend runs, and the repository that it reads."""
