"""Memory: what a bundle will need, and what a process took.

Predicted from the sizes of a model alone, which a bundle's manifest has and a config implies
(`awq_edge.fit`):

    weights + KV cache + activations + runtime overhead

Measured as resident memory (RSS). It has two parts that mean different things. Anonymous pages are
allocations: they stay until they are freed, and count against the device. File-backed pages are
parts of mapped files (libraries, the weight file): the system drops them when memory runs short
and reads them again. A peak that holds the weights twice, once mapped and once copied, is possible
for a moment on a machine with memory to spare; the anonymous part is what must fit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from awq_edge.recipe.runtimes import load, require_runtime

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
# onnxruntime on a CPU, by type of the activations. value: bytes of one while it is computed with:
# the kernels compute float16 in float32 copies. score: bytes of one attention score, of every
# head over the context. slack: its arena grows in powers of two. Fitted to measurements, which
# docs/run-report.md lists.
_VALUE_BYTES = {"float32": 4, "float16": 6}
_SCORE_BYTES = 4
_ARENA_SLACK = 1.5
# onnxruntime on a CPU packs a MatMulNBits while it loads: bytes that this adds for each scale. With
# int8 activations (accuracy level 4) another copy of the scale and a sum of the codes, in float32;
# with float16 activations the scale in float32. Measured on x86-64, docs/run-report.md.
_PACKED_INT8_BYTES = 8
_PACKED_FLOAT16_BYTES = 4
_INT8_LEVEL = 4
# Rows of logits that are computed, or scored, at a time by the cuda backend, TensorRT's engines and
# the perplexity: a chunk of 512 by a vocabulary of 128,000 would take 131 MB in 16 bits alone.
LOGITS_ROWS = 64
# float16 stands for unquantized: the cache is in the activations' type. int8: the form that the
# kernels have, with a float32 scale a head and position (docs/plugin.md); no runtime makes it yet.
KvDtype = Literal["float16", "int8"]
_KV_SCALE_BYTES = 4


class ModelSizes(Protocol):
    """Sizes of a model for one runtime, for predictions. `BundleManifest` has them; its docstring
    describes the fields."""

    @property
    def runtime(self) -> str: ...
    @property
    def prefill_chunk(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def experts_per_token(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_size(self) -> int: ...
    @property
    def activation_dtype(self) -> str: ...
    @property
    def accuracy_level(self) -> int | None: ...
    @property
    def scale_groups(self) -> int: ...
    @property
    def arena_bytes(self) -> Mapping[str, int]: ...
    @property
    def part_bytes(self) -> dict[str, int]: ...


@dataclass(frozen=True)
class PredictedMemory:
    """Bytes by part."""

    weights: int
    kv_cache: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.overhead


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of this process now: rss = anonymous + file_backed (+ shared), and rss at its peak.

    None where the system does not tell (anonymous and file_backed: Linux only).
    """

    rss: int | None
    peak_rss: int | None
    anonymous: int | None
    file_backed: int | None


def kv_cache_bytes(sizes: ModelSizes, context: int, kv_dtype: KvDtype = "float16") -> int:
    """Bytes of keys and values of `context` positions of one sequence."""
    if kv_dtype == "int8":
        per_head = sizes.head_size + _KV_SCALE_BYTES
    else:
        per_head = sizes.head_size * _ITEM_BYTES[sizes.activation_dtype]
    return 2 * sizes.num_layers * sizes.num_kv_heads * per_head * context


def predict_memory(
    sizes: ModelSizes, context: int, kv_dtype: KvDtype = "float16"
) -> PredictedMemory:
    """The memory for one sequence of up to `context` tokens. context: positions of the KV cache."""
    memory = require_runtime(sizes.runtime).memory
    activations: Callable[[ModelSizes, int], int] = load(memory.activations)
    return PredictedMemory(
        weights=sum(sizes.part_bytes.values()) + packing_bytes(sizes),
        kv_cache=kv_cache_bytes(sizes, context, kv_dtype),
        activations=activations(sizes, context),
        overhead=memory.process + memory.graph + memory.layer * sizes.num_layers,
    )


def packing_bytes(sizes: ModelSizes) -> int:
    """Bytes of weights that a runtime holds in another layout, beside those of the file."""
    packing = require_runtime(sizes.runtime).memory.packing
    if packing is None:
        return 0
    of_model: Callable[[ModelSizes], int] = load(packing)
    return of_model(sizes)


def matmul_nbits_packing(sizes: ModelSizes) -> int:
    """Bytes that onnxruntime adds for the scales of MatMulNBits."""
    per_scale = _PACKED_INT8_BYTES if sizes.accuracy_level == _INT8_LEVEL else 0
    if sizes.activation_dtype == "float16":
        per_scale += _PACKED_FLOAT16_BYTES
    return per_scale * sizes.scale_groups


def arena_activations(sizes: ModelSizes, context: int) -> int:
    """Bytes of the arenas of the cuda backend: for the tokens of a chunk, and the rows of logits
    that are computed at a time. The kernels' workspace, which depends on the GPU, is not included.
    """
    rows = {"tokens": min(sizes.prefill_chunk, context), "wanted": LOGITS_ROWS}
    return sum(rows[name] * size for name, size in sizes.arena_bytes.items())


def chunk_activations(sizes: ModelSizes, context: int) -> int:
    """An estimate for TensorRT: one chunk, and the rows of logits that are computed at a time, in
    16 bits and in 32."""
    chunk = min(sizes.prefill_chunk, context)
    per_token = (
        3 * sizes.hidden_size  # residual, branch, normed
        + (2 * sizes.num_heads + 2 * sizes.num_kv_heads) * sizes.head_size  # q, k, v, y
        + sizes.intermediate_size  # product
    )
    per_logits_row = 6 * sizes.vocab_size + 2 * 2 * sizes.hidden_size
    item = _ITEM_BYTES[sizes.activation_dtype]
    return item * chunk * per_token + LOGITS_ROWS * per_logits_row


def graph_activations(sizes: ModelSizes, context: int) -> int:
    """Bytes of onnxruntime's activations: those of one prefill chunk that are alive at the same
    time, at the FFN; and the attention scores of every head over the context."""
    dtype = sizes.activation_dtype
    chunk = min(sizes.prefill_chunk, context)
    per_token = (
        (sizes.num_heads + 2 * sizes.num_kv_heads) * sizes.head_size  # q, k, v
        + 6 * sizes.intermediate_size  # gate and up, once merged and once split; their products
        + 4 * sizes.hidden_size  # residual, normed, attention's and FFN's output
        # Rows of the tokens' experts: gathered, cut, put together, put back, weighted.
        + 5 * sizes.experts_per_token * sizes.hidden_size
    )
    values = _VALUE_BYTES.get(dtype, _ITEM_BYTES[dtype]) * (chunk * per_token + sizes.vocab_size)
    scores = _SCORE_BYTES * chunk * sizes.num_heads * context
    return int(_ARENA_SLACK * values) + scores


def read_process_memory() -> ProcessMemory:
    """This process's memory from /proc/self/status; the peak alone where there is no /proc."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ProcessMemory(None, _peak_from_rusage(), None, None)
    fields = {
        key: int(value.split()[0]) * 1024
        for key, _, value in (line.partition(":") for line in text.splitlines())
        if key.startswith(("Vm", "Rss"))
    }
    return ProcessMemory(
        rss=fields.get("VmRSS"),
        peak_rss=fields.get("VmHWM"),
        anonymous=fields.get("RssAnon"),
        file_backed=fields.get("RssFile"),
    )


def _peak_from_rusage() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
