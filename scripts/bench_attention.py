"""Measure cached attention on a GPU: decode as a share of copy bandwidth, prefill in TFLOP/s.

    python scripts/bench_attention.py --output docs/results/attention_h100.json

Beside each number stands torch's F.scaled_dot_product_attention with its flash backend, which only
attends: ours also rotates q and k and appends k and v. Decode caches rotate beyond the L2 cache,
as the layers of a model do.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_timing import copies_beyond_cache, copy_bandwidth, environment, time_calls
from torch.nn.attention import SDPBackend, sdpa_kernel

from awq_edge.kernels.interface import AttentionParameters, Dtype
from awq_edge.kernels.kernels import KernelLibrary, load_kernels


@dataclass(frozen=True)
class Shape:
    name: str
    num_heads: int
    num_kv_heads: int
    head_size: int = 128


SHAPES = (Shape("Llama-2-7B", 32, 32), Shape("Llama-3-8B", 32, 8))
DECODE_LENGTHS = (512, 1024, 4096, 16384)
PREFILL_LENGTHS = (512, 2048, 4096)


class Layer:
    """The tensors of one layer's attention, float16, and one call on them."""

    def __init__(
        self, library: KernelLibrary, shape: Shape, past: int, tokens: int, int8: bool
    ) -> None:
        self.library, self.shape, self.tokens = library, shape, tokens
        context = past + tokens
        size, heads, kv_heads = shape.head_size, shape.num_heads, shape.num_kv_heads
        half = {"dtype": torch.float16, "device": "cuda"}
        self.past = torch.tensor([past], device="cuda")
        self.qkv = torch.randn(1, tokens, (heads + 2 * kv_heads) * size, **half)
        self.q, self.k, self.v = self.qkv.split(
            [heads * size, kv_heads * size, kv_heads * size], dim=-1
        )
        self.y = torch.empty(1, tokens, heads * size, **half)
        angle = torch.rand(context, size // 2, device="cuda")
        self.cosine, self.sine = angle.cos(), angle.sin()
        cache = (2, 1, kv_heads, context, size)
        self.scales = torch.rand(cache[:-1], device="cuda") / 127
        self.cache = torch.randn(cache, **half)
        if int8:
            self.cache = torch.randint(-127, 128, cache, dtype=torch.int8, device="cuda")
        self.parameters = AttentionParameters(
            dtype=Dtype.FLOAT16,
            kv_dtype=Dtype.INT8 if int8 else Dtype.FLOAT16,
            batch=1,
            tokens=tokens,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_size=size,
            rotary_size=size,
            context=context,
            scale=size**-0.5,
            q=self.q.data_ptr(),
            k=self.k.data_ptr(),
            v=self.v.data_ptr(),
            q_stride=self.q.stride(1),
            k_stride=self.k.stride(1),
            v_stride=self.v.stride(1),
            past_length=self.past.data_ptr(),
            cosine=self.cosine.data_ptr(),
            sine=self.sine.data_ptr(),
            key_cache=self.cache[0].data_ptr(),
            value_cache=self.cache[1].data_ptr(),
            key_scales=self.scales[0].data_ptr(),
            value_scales=self.scales[1].data_ptr(),
            y=self.y.data_ptr(),
        )
        size_asked = library.size(
            "awq_edge_cached_attention_workspace", ctypes.byref(self.parameters)
        )
        self.workspace = torch.zeros(size_asked + 16, dtype=torch.uint8, device="cuda")

    def cache_bytes(self) -> int:
        scales = self.scales.nbytes if self.cache.dtype == torch.int8 else 0
        return self.cache.nbytes + scales

    def run(self) -> None:
        self.library.call(
            "awq_edge_cached_attention",
            ctypes.byref(self.parameters),
            self.workspace.data_ptr(),
            self.workspace.numel(),
            torch.cuda.current_stream().cuda_stream,
        )

    def run_torch(self) -> None:
        """q against this layer's cache, or, in a prefill, against k and v of the call."""
        heads, kv_heads, size = self.shape.num_heads, self.shape.num_kv_heads, self.shape.head_size
        q = self.q.view(1, self.tokens, heads, size).transpose(1, 2)
        torch.nn.functional.scaled_dot_product_attention(
            q, self.cache[0], self.cache[1], is_causal=self.tokens > 1, enable_gqa=heads != kv_heads
        )


def decode_rows(library: KernelLibrary, bandwidth: float) -> list[dict[str, Any]]:
    rows = []
    for shape in SHAPES:
        for length in DECODE_LENGTHS:
            for tokens, int8 in ((1, False), (1, True), (8, False)):
                layer = Layer(library, shape, length - tokens, tokens, int8)
                count = copies_beyond_cache(layer.cache_bytes())
                layers = [layer] + [
                    Layer(library, shape, length - tokens, tokens, int8) for _ in range(count - 1)
                ]
                row = {"shape": shape.name, "context": length, "tokens": tokens, "int8": int8}
                row |= timed("ours", [one.run for one in layers])
                row["bytes"] = layer.cache_bytes()
                row["share_of_copy"] = layer.cache_bytes() / row["ours_us"] * 1e6 / bandwidth
                if tokens == 1 and not int8:
                    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                        row |= timed("torch", [one.run_torch for one in layers])
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def prefill_rows(library: KernelLibrary) -> list[dict[str, Any]]:
    rows = []
    for shape in SHAPES:
        for length in PREFILL_LENGTHS:
            for int8 in (False, True):
                layer = Layer(library, shape, 0, length, int8)
                # Two products of which the causal half is needed.
                work = 2 * 2 * length * (length + 1) / 2 * shape.num_heads * shape.head_size
                row: dict[str, Any] = {"shape": shape.name, "tokens": length, "int8": int8}
                row |= timed("ours", [layer.run] * 4)
                row["ours_tflops"] = work / row["ours_us"] / 1e6
                if not int8:
                    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                        row |= timed("torch", [layer.run_torch] * 4)
                    row["torch_tflops"] = work / row["torch_us"] / 1e6
                    row["share_of_torch"] = row["torch_us"] / row["ours_us"]
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def timed(name: str, calls: list[Callable[[], None]]) -> dict[str, float]:
    timing = time_calls(calls)
    return {f"{name}_us": timing.seconds * 1e6, f"{name}_spread_us": timing.spread * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", type=Path, help="libawq_edge_kernels.so, if not the usual one")
    parser.add_argument("--only", choices=["decode", "prefill"], help="measure one of the two")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    library = load_kernels(arguments.kernels)
    bandwidth = copy_bandwidth()
    result = {
        "environment": environment(),
        "copy_bandwidth": bandwidth,
        "decode": [] if arguments.only == "prefill" else decode_rows(library, bandwidth),
        "prefill": [] if arguments.only == "decode" else prefill_rows(library),
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
