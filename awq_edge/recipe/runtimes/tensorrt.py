"""TensorRT, as JetPack has it: engines are built on the board that runs them."""

from __future__ import annotations

from awq_edge.recipe.runtimes.base import EngineKind, Memory, NativeLayers, Runtime

# The oldest that graphs are made for: JetPack 6.2's.
OLDEST_VERSION = "10.3"
# The first with RMSNormalization, RotaryEmbedding and TensorScatter.
FIRST_WITH_LAYERS = "10.15"

RUNTIME = Runtime(
    name="tensorrt",
    session="awq_edge.tensorrt.session.opening:open_session",
    lowering="awq_edge.exporter.lower_tensorrt:build",
    checks="awq_edge.exporter.checks_tensorrt:check",
    activation_dtypes=("float16", "bfloat16"),
    storage="awq_edge.program.storage:tensorrt_form",
    # TensorRT's own plan of its activations is not known before a build; ours is the nearest.
    memory=Memory(
        process=300_000_000,  # CUDA's context and libraries
        activations="awq_edge.runtime.memory:chunk_activations",
        note="activations and overhead on a GPU are estimates that were not measured yet",
    ),
    on_gpu=True,
    uses_kernels=True,
    native=NativeLayers(
        activation_dtypes=("float16", "bfloat16", "float32"),
        first_version=FIRST_WITH_LAYERS,
    ),
    engine=EngineKind("TensorRT", "tensorrt", "tensorrt", ahead_of_time=False),
)
