"""onnxruntime on a CPU."""

from __future__ import annotations

from awq_edge.recipe.runtimes.base import Memory, Runtime

RUNTIME = Runtime(
    name="onnxruntime",
    session="awq_edge.runtime.backends.onnxruntime:open_session",
    lowering="awq_edge.exporter.lower_onnxruntime:build",
    checks="awq_edge.exporter.checks_onnxruntime:check",
    activation_dtypes=("float16", "float32"),
    storage="awq_edge.program.storage:onnxruntime_form",
    # The interpreter with its libraries and a session without a model, as measured on x86-64 Linux:
    # 31 MB before loading, about 50 MB more for onnxruntime and tokenizers (docs/run-report.md).
    # Graph and layers: measured with models of 2 to 24 layers of Llama's kind and onnxruntime 1.32.
    # Beside the weights it is little, but in a very small model.
    memory=Memory(
        process=85_000_000,
        graph=250_000,
        layer=160_000,
        activations="awq_edge.runtime.memory:graph_activations",
        packing="awq_edge.runtime.memory:matmul_nbits_packing",
    ),
    on_gpu=False,
    uses_kernels=False,
)
