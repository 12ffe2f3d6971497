"""The kernels of plugins/ on an NVIDIA GPU, without TensorRT."""

from __future__ import annotations

from awq_edge.recipe.runtimes.base import Memory, Runtime

RUNTIME = Runtime(
    name="cuda",
    session="awq_edge.runtime.backends.cuda.opening:open_session",
    lowering="awq_edge.exporter.lower_cuda:build",
    checks="awq_edge.exporter.checks_cuda:check",
    activation_dtypes=("float16", "bfloat16"),
    storage="awq_edge.program.storage:cuda_form",
    memory=Memory(
        process=750_000_000,  # CUDA's context, torch and cuBLAS: 742 MB of an H200 (docs/fit.md)
        activations="awq_edge.runtime.memory:arena_activations",
        arenas="awq_edge.exporter.emit_cuda:arena_bytes",
        note="on an H200 the buffers of the kernels took 0.1 GB more than is counted here",
    ),
    on_gpu=True,
    uses_kernels=True,
    recipe="cuda",
    extra="cuda",
)
