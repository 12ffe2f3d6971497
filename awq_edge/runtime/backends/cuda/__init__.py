"""The cuda backend: our kernels on an NVIDIA GPU, without TensorRT. docs/cuda-backend.md.

A program says which operations run on which memory; nothing but `device_torch.py` imports torch.
"""
