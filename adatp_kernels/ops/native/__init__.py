"""The native backend: compiled C++ for CPU tensors, from ``csrc/``."""
