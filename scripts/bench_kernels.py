"""Speed of the quantized linear on a GPU, beside cuBLAS, torch's int4 kernel and Triton.

    python scripts/bench_kernels.py --json docs/results/kernels_h200.json
    python scripts/bench_kernels.py --sweep      # every partition of the decode kernel

The layers of Llama-2-7B, Llama-3-8B and Qwen3-4B as they run: q, k and v merged, gate and up
merged. Weights rotate over more memory than the L2 cache holds, calls are captured into one CUDA
graph, and a figure is the median of its replays. Each kernel's result is compared with float64
before it is timed.

decode: time and the bytes of the weight (codes, scales, zero points) over the bandwidth of a large
copy in the same process. prefill: TFLOP/s. `--m` and `--shape` choose; `--quick` leaves the other
libraries out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_timing import copies_beyond_cache, copy_bandwidth, environment, time_calls

from awq_edge.artifacts.directories import atomic_file
from awq_edge.kernels.interface import Tactic
from awq_edge.kernels.kernels import load_kernels

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.kernels.gpu.w4a16_cases import (
    Linear,
    Runner,
    random_linear,
    reference,
    relative_error,
    weight_of,
)

# (n, k) by name.
SHAPES = {
    "llama-2-7b.qkv": (12288, 4096),
    "llama-2-7b.o": (4096, 4096),
    "llama-2-7b.gate_up": (22016, 4096),
    "llama-2-7b.down": (4096, 11008),
    "llama-2-7b.lm_head": (32000, 4096),
    "llama-3-8b.qkv": (6144, 4096),
    "llama-3-8b.gate_up": (28672, 4096),
    "llama-3-8b.down": (4096, 14336),
    "llama-3-8b.lm_head": (128256, 4096),
    "qwen3-4b.qkv": (6144, 2560),
    "qwen3-4b.o": (2560, 4096),
    "qwen3-4b.gate_up": (19456, 2560),
    "qwen3-4b.down": (2560, 9728),
}
DECODE_M = (1, 2, 4, 8, 16)
PREFILL_M = (32, 64, 128, 256, 512, 1024, 2048, 4096)
PREFILL_SHAPES = ("llama-2-7b.o", "llama-3-8b.gate_up", "llama-3-8b.down")
# The largest error that a contender may have: rounding to bfloat16, the coarsest of them.
ERROR_BOUND = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--shape", action="append", choices=sorted(SHAPES), help="default: all")
    parser.add_argument("--m", action="append", type=int, help="rows of x; default: all")
    parser.add_argument("--bits", type=int, default=4, choices=(3, 4, 8))
    parser.add_argument("--quick", action="store_true", help="without the other libraries")
    parser.add_argument("--sweep", action="store_true", help="partitions of the decode kernel")
    parser.add_argument("--commit", help="of these sources, where git does not know it")
    arguments = parser.parse_args()
    bench = Bench(arguments.bits, quick=arguments.quick)
    report: dict[str, Any] = {
        "what": f"w4a16_linear, {arguments.bits} bits, group 128, asymmetric, float16",
        "machine": environment() | ({"commit": arguments.commit} if arguments.commit else {}),
        "copy_bytes_per_second": bench.bandwidth,
        "decode": [],
        "prefill": [],
    }
    print(f"copy {bench.bandwidth / 1e9:,.0f} GB/s on {report['machine']['device']}")
    for name in arguments.shape or SHAPES:
        wanted = arguments.m or DECODE_M
        small = [m for m in wanted if m <= 16]
        large = arguments.m or (PREFILL_M if name in PREFILL_SHAPES else ())
        if arguments.sweep:
            report["decode"] += bench.sweep(name, small)
        else:
            report["decode"] += bench.decode(name, small)
            report["prefill"] += [bench.prefill(name, m) for m in large if m > 16]
        if arguments.json:  # after each shape: a run that is cut off has what it has measured
            with atomic_file(arguments.json) as file:
                file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


class Bench:
    def __init__(self, bits: int, *, quick: bool) -> None:
        self._bits = bits
        self._quick = quick
        self._run = Runner(load_kernels())
        self.bandwidth = copy_bandwidth()

    def decode(self, name: str, rows: list[int]) -> list[dict[str, Any]]:
        """Each m of one shape."""
        n, k = SHAPES[name]
        linears = self._linears(n, k)
        found: list[dict[str, Any]] = []
        for m in rows:
            x = torch.randn(m, k, device="cuda", dtype=torch.float16)
            row = self._row(name, m, linears[0])
            row["ours"] = self._time(linears, x, Tactic.AUTO)
            row["share_of_copy"] = row["weight_bytes"] / row["ours"] / self.bandwidth
            if found and found[0]["m"] == 1:
                row["over_m_1"] = row["ours"] / found[0]["ours"]
            if not self._quick and m in (1, 16):
                row |= others(n, k, x)
            found.append(row)
            print(_line(row))
        return found

    def prefill(self, name: str, m: int) -> dict[str, Any]:
        """One m of one shape, by each tactic."""
        n, k = SHAPES[name]
        linears = [random_linear(n, k, bits=self._bits)]
        x = torch.randn(m, k, device="cuda", dtype=torch.float16)
        row = self._row(name, m, linears[0])
        row["ours"] = self._time(linears, x, Tactic.AUTO, calls=4)
        row["gemm"] = self._time(linears, x, Tactic.GEMM, calls=4)
        row["cublaslt"] = self._time(linears, x, Tactic.CUBLASLT, calls=4)
        if not self._quick:
            row |= others(n, k, x, calls=4)
            row["over_cublas"] = row["cublas"] / row["ours"]
        operations = 2 * m * n * k
        row["tflops"] = {
            side: operations / row[side] / 1e12
            for side in ("ours", "gemm", "cublaslt", "cublas", "triton")
            if side in row
        }
        print(_line(row))
        return row

    def sweep(self, name: str, rows: list[int]) -> list[dict[str, Any]]:
        """Every partition of the decode kernel, and what it chooses by itself."""
        n, k = SHAPES[name]
        linears, found = self._linears(n, k), []
        for m in rows:
            x = torch.randn(m, k, device="cuda", dtype=torch.float16)
            times: dict[str, float] = {"auto": self._time(linears, x, Tactic.DECODE)}
            for tiles in (1, 2):
                for warps, row_warps in ((4, 1), (8, 1), (16, 1), (4, 2), (8, 2), (16, 2), (8, 4)):
                    for splits in (1, 2, 4):
                        tactic = Tactic.DECODE | tiles << 8 | warps << 12
                        tactic |= splits << 20 | row_warps << 28
                        key = f"tiles {tiles} warps {warps}/{row_warps} splits {splits}"
                        times[key] = self._time(linears, x, tactic)
            best = sorted(times, key=lambda key: times[key])[:3]
            listed = ", ".join(f"{key}: {times[key] * 1e6:.2f} us" for key in best)
            print(f"{name:22} m {m:2}  auto {times['auto'] * 1e6:.2f} us  best {listed}")
            found.append(self._row(name, m, linears[0]) | {"partitions": times})
        return found

    def _linears(self, n: int, k: int) -> list[Linear]:
        one = random_linear(n, k, bits=self._bits)
        count = copies_beyond_cache(_bytes(one), at_least=3)
        return [one, *(random_linear(n, k, bits=self._bits, seed=i) for i in range(1, count))]

    def _row(self, name: str, m: int, linear: Linear) -> dict[str, Any]:
        n, k = SHAPES[name]
        return {"shape": name, "m": m, "n": n, "k": k, "weight_bytes": _bytes(linear)}

    def _time(self, linears: list[Linear], x: Any, tactic: int, calls: int = 0) -> float:
        """Seconds of one call, after its result was compared with float64."""
        expected = reference(linears[0], weight_of(linears[0]), x[:64])
        error = relative_error(self._run(linears[0], x, tactic)[:64], expected)
        _require(error, "ours")
        y = torch.empty(len(x), linears[0].width, device="cuda", dtype=torch.float16)
        count = max(calls, len(linears))
        return time_calls(
            [_call(self._run, linears[i % len(linears)], x, tactic, y) for i in range(count)]
        ).seconds


def others(n: int, k: int, x: Any, calls: int = 0) -> dict[str, float]:
    """Seconds of a call of the other libraries, with weights of the same shape."""
    from triton_w4a16 import TritonLinear

    count = max(calls, copies_beyond_cache(n * k * 2, at_least=3))
    weights = [torch.randn(n, k, device="cuda", dtype=torch.float16) / k**0.5]
    weights += [weights[0].clone() for _ in range(min(count, 32) - 1)]
    y = torch.empty(len(x), n, device="cuda", dtype=torch.float16)
    found = {
        "cublas": time_calls(
            [lambda w=w: torch.matmul(x, w.T, out=y) for w in weights[:count]]
        ).seconds
    }
    del weights
    count = max(calls, copies_beyond_cache(n * k // 2, at_least=3))
    triton = [TritonLinear(n, k) for _ in range(min(count, 64))]
    triton[0](x, y)
    _require(relative_error(y[:64], x[:64].double() @ triton[0].weight().T), "triton")
    found["triton"] = time_calls([lambda t=t: t(x, y) for t in triton]).seconds
    del triton
    if len(x) <= 16:
        found["torch_int4"] = time_calls(torch_int4(n, k, x, min(count, 64))).seconds
    return found


def torch_int4(n: int, k: int, x: Any, count: int) -> list[Callable[[], Any]]:
    """torch.ops.aten._weight_int4pack_mm: bfloat16, 4 bits, groups of 128."""
    group_size, inner_k_tiles = 128, 8
    given = x.bfloat16()
    calls = []
    for _ in range(count):
        octets = torch.randint(0, 256, (n, k // 2), device="cuda", dtype=torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack(octets, inner_k_tiles)
        scales = torch.rand(k // group_size, n, 2, device="cuda").bfloat16()
        calls.append(
            lambda p=packed, s=scales: torch.ops.aten._weight_int4pack_mm(given, p, group_size, s)
        )
    return calls


def _call(run: Runner, linear: Linear, x: Any, tactic: int, y: Any) -> Callable[[], Any]:
    return lambda: run(linear, x, tactic, y)


def _require(error: float, what: str) -> None:
    if not error < ERROR_BOUND:  # NaN too
        raise SystemExit(f"{what}: relative error {error:.3g}; a wrong result is not timed")


def _bytes(linear: Linear) -> int:
    tensors = (linear.qweight, linear.scales, linear.zeros)
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _line(row: dict[str, Any]) -> str:
    times = {
        side: row[side]
        for side in ("ours", "gemm", "cublaslt", "cublas", "torch_int4", "triton")
        if side in row
    }
    text = "  ".join(f"{side} {seconds * 1e6:8.2f} us" for side, seconds in times.items())
    shares = {
        "share_of_copy": "{:.0%} of copy",
        "over_m_1": "{:.2f} of m = 1",
        "over_cublas": "{:.2f} of cuBLAS",
    }
    notes = "  ".join(words.format(row[key]) for key, words in shares.items() if key in row)
    return f"{row['shape']:22} m {row['m']:4}  {text}  {notes}"


if __name__ == "__main__":
    main()
