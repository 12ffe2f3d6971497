"""Memory predicted from a manifest, and read from the system."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from awq_edge.artifacts.directories import Bundle, BundleManifest
from awq_edge.runtime.memory import kv_cache_bytes, predict_memory, read_process_memory

ALLOCATED = 64 << 20
# Pages that other parts of the process take or give back meanwhile.
NOISE = 8 << 20


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> BundleManifest:
    return Bundle.open(tiny_bundle).manifest


def test_kv_cache_is_counted(manifest: BundleManifest) -> None:
    # 2 layers, keys and values, 2 heads of 16 values of 4 bytes, 100 positions
    assert kv_cache_bytes(manifest, 100) == 2 * 2 * 2 * 16 * 4 * 100
    half = manifest.model_copy(update={"activation_dtype": "float16"})
    assert kv_cache_bytes(half, 100) == kv_cache_bytes(manifest, 100) // 2


def test_weights_are_the_weight_file(manifest: BundleManifest, tiny_bundle: Path) -> None:
    predicted = predict_memory(manifest, 256)
    size = (tiny_bundle / manifest.weights).stat().st_size
    assert predicted.weights == pytest.approx(size, rel=0.05)  # the file has padding
    parts = (predicted.weights, predicted.kv_cache, predicted.activations, predicted.overhead)
    assert predicted.total == sum(parts)
    assert min(parts) > 0


def test_a_larger_context_or_chunk_needs_more(manifest: BundleManifest) -> None:
    small, large = predict_memory(manifest, 64), predict_memory(manifest, 256)
    assert large.kv_cache == 4 * small.kv_cache
    assert large.activations > small.activations
    assert large.weights == small.weights
    chunk = manifest.model_copy(update={"prefill_chunk": 2 * manifest.prefill_chunk})
    assert predict_memory(chunk, 256).activations > large.activations
    # A chunk beyond the context is never run.
    whole = manifest.model_copy(update={"prefill_chunk": 256})
    beyond = manifest.model_copy(update={"prefill_chunk": 4096})
    assert predict_memory(whole, 256) == predict_memory(beyond, 256)


SMALL = {"hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16}
LARGE = {"hidden_size": 2048, "intermediate_size": 5632, "num_heads": 32}
# What allocations grew by (bytes) in a prefill of the whole context: 4 KV heads of 64, vocabulary
# 32000, onnxruntime 1.32 on x86-64.
MEASURED = [
    (SMALL, "float32", 1024, 512, 109.0e6),
    (SMALL, "float32", 4096, 512, 314.1e6),
    (LARGE, "float32", 2048, 128, 77e6),
    (LARGE, "float32", 2048, 256, 157e6),
    (LARGE, "float32", 2048, 512, 320e6),
    (SMALL, "float16", 4096, 512, 298.5e6),
    (SMALL, "float16", 1024, 512, 127.4e6),
    (SMALL, "float16", 4096, 128, 74.3e6),
    (SMALL, "float16", 1024, 128, 34.4e6),
]
# The arena doubles what it holds, so that equal needs are met with up to twice the memory.
ARENA_STEPS = 0.45


@pytest.mark.parametrize(("sizes", "dtype", "context", "chunk", "grown"), MEASURED)
def test_activations_are_as_measured(
    manifest: BundleManifest,
    sizes: dict[str, int],
    dtype: str,
    context: int,
    chunk: int,
    grown: float,
) -> None:
    shape = {**sizes, "num_kv_heads": 4, "head_size": 64, "vocab_size": 32000}
    update = {**shape, "prefill_chunk": chunk, "activation_dtype": dtype}
    predicted = predict_memory(manifest.model_copy(update=update), context).activations
    assert predicted == pytest.approx(grown, rel=ARENA_STEPS)


# The same of a prefill of 512 tokens in chunks of 128, context 1024, by what experts differ in.
MEASURED_EXPERTS = [
    ({"hidden_size": 1024, "intermediate_size": 384, "experts_per_token": 8}, 38.4e6),
    ({"hidden_size": 2048, "intermediate_size": 768, "experts_per_token": 8}, 73.8e6),
    ({"hidden_size": 1024, "intermediate_size": 3584, "experts_per_token": 2}, 19.6e6),
]


@pytest.mark.parametrize(("sizes", "grown"), MEASURED_EXPERTS)
def test_rows_of_experts_are_counted(
    manifest: BundleManifest, sizes: dict[str, int], grown: float
) -> None:
    """More than measured where tokens are spread: all may be sent to one expert."""
    shape = {**sizes, "num_heads": 4, "num_kv_heads": 2, "head_size": 64, "vocab_size": 1024}
    update = {**shape, "prefill_chunk": 128, "activation_dtype": "float32"}
    predicted = predict_memory(manifest.model_copy(update=update), 1024).activations
    assert 0.8 * grown < predicted < 1.6 * grown


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_process_memory_sees_an_allocation() -> None:
    before = read_process_memory()
    block = np.ones(ALLOCATED, dtype=np.uint8)
    after = read_process_memory()
    assert before.rss and after.rss and before.anonymous and after.anonymous and after.peak_rss
    assert abs(after.rss - before.rss - ALLOCATED) < NOISE
    assert abs(after.anonymous - before.anonymous - ALLOCATED) < NOISE
    assert after.peak_rss >= after.rss
    del block
