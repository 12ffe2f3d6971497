"""Sessions of the runtimes tensorrt and tensorrt-rtx: docs/tensorrt-runtime.md.

opening.py    GPU, TensorRT and engine file -> session
session.py    the session: buffers, chunks, logits
contexts.py   an execution context in one profile, directly or as a CUDA graph
creation.py   how contexts are made, kernels of TensorRT for RTX
ports.py      what an engine takes and gives; how a prompt is cut
"""
