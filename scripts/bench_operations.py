"""Speed on a GPU of the operations between the quantized linears, as a share of a copy's bytes/s.

    python scripts/bench_operations.py --json docs/results/operations_h200.json

Norms, activations, embeddings, logits, sampling, linears of 16 bits, and routed experts in the
shapes of Qwen3-30B-A3B and Mixtral 8x7B. bytes: each input read once, each output written once; of
experts, the weights of those that are chosen. Data rotate over more memory than the L2 cache holds
where one call has less, calls are captured into one CUDA graph, and a figure is the median of its
replays.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_timing import copies_beyond_cache, copy_bandwidth, environment, time_calls

from awq_edge.artifacts.directories import atomic_file
from awq_edge.kernels.interface import MAX_TOP, Activation, DenseWeight, Dtype, Sampler, Tactic
from awq_edge.kernels.kernels import load_kernels

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.kernels.gpu.experts_cases import ExpertsCall, inputs, random_experts
from tests.kernels.gpu.op_cases import Call
from tests.kernels.gpu.w4a16_cases import random_linear

VOCAB, HIDDEN = 151_936, 4096
PREFILL_ROWS = 2048
# name: experts, size, intermediate, experts of a token
EXPERTS = {"Qwen3-30B-A3B": (128, 2048, 768, 8), "Mixtral-8x7B": (8, 4096, 14336, 2)}
DENSE = {"router": (128, 2048), "lm_head": (VOCAB, 1024), "square": (4096, 4096)}


@dataclass(frozen=True)
class Measured:
    """A kernel's work. calls: the same on different data. flops: multiplications and additions."""

    name: str
    calls: list[Callable[[], None]]
    bytes: int
    flops: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--commit", help="of these sources, where git does not know it")
    arguments = parser.parse_args()
    bandwidth = copy_bandwidth()
    call = Call(load_kernels(), torch, "float16")
    report: dict[str, Any] = {
        "what": "operations between the quantized linears, float16",
        "machine": environment() | ({"commit": arguments.commit} if arguments.commit else {}),
        "copy_bytes_per_second": bandwidth,
        "operations": [],
    }
    print(f"copy {bandwidth / 1e9:,.0f} GB/s on {report['machine']['device']}")
    for measure in (norms, activations, tables, sampling, dense, experts):
        for work in measure(call):
            timing = time_calls(work.calls)
            row = {
                "name": work.name,
                "seconds": timing.seconds,
                "spread": timing.spread,
                "bytes": work.bytes,
                "share_of_copy": work.bytes / timing.seconds / bandwidth,
                "flops_per_second": work.flops / timing.seconds or None,
            }
            report["operations"].append(row)
            tera = f"{work.flops / timing.seconds / 1e12:8.1f} TFLOP/s" if work.flops else ""
            print(
                f"{work.name:44} {timing.seconds * 1e6:9.2f} us {work.bytes / 1e6:9.2f} MB "
                f"{row['share_of_copy']:6.1%} {tera}"
            )
        if arguments.json:  # after each group: a run that is cut off has what it has measured
            with atomic_file(arguments.json) as file:
                file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def rotated(make: Callable[[int], Callable[[], None]], nbytes: int) -> list[Callable[[], None]]:
    """Calls on as much data as it takes to leave the cache. make: of a seed."""
    return [make(seed) for seed in range(copies_beyond_cache(nbytes, at_most=64))]


def norms(call: Call) -> Iterator[Measured]:
    weight, post = call.random(HIDDEN), call.random(HIDDEN, seed=1)
    for rows in (1, PREFILL_ROWS):
        tensor = rows * HIDDEN * 2
        for name, given in (("norm", {}), ("post-norm, norm", {"post_weight": post})):

            def make(seed: int, given: dict[str, Any] = given, rows: int = rows) -> Any:
                x, residual, y = (call.random(rows, HIDDEN, seed=seed) for _ in range(3))
                return lambda: call.normalize(x, residual=residual, weight=weight, y=y, **given)

            yield Measured(
                f"{name} with a residual, {rows} rows", rotated(make, 4 * tensor), 4 * tensor
            )


def activations(call: Call) -> Iterator[Measured]:
    size = 14336
    for rows in (1, PREFILL_ROWS):

        def make(seed: int, rows: int = rows) -> Any:
            x, y = call.random(rows, 2 * size, seed=seed), call.poisoned(rows, size)
            gate, up = x.chunk(2, dim=1)
            activation = Activation.GELU_TANH
            given = (rows, size, 2 * size, activation, call.code)
            return lambda: call.run("awq_edge_activation", gate, up, y, *given)

        nbytes = 3 * rows * size * 2
        yield Measured(f"gelu(gate) * up, {rows} rows", rotated(make, nbytes), nbytes)


def tables(call: Call) -> Iterator[Measured]:
    size = 1024
    table = random_linear(VOCAB, size, bits=4)
    for rows in (1, PREFILL_ROWS):
        ids = torch.randint(VOCAB, (rows,), device="cuda")
        y = call.poisoned(rows, size)
        given = (table.parameters, ids, y, rows, 1.0)
        calls = [lambda given=given: call.run("awq_edge_w4a16_embedding", *given)] * 8
        nbytes = rows * size * 2 + rows * size // 2 + rows * size // 128 * 3
        yield Measured(f"embedding from 4 bits, {rows} rows", calls, nbytes)

    def make(seed: int) -> Any:
        x = call.random(1, VOCAB, seed=seed)
        y = torch.empty(1, VOCAB, device="cuda")
        given = (1, VOCAB, 0.5, 30.0, call.code, Dtype.FLOAT32)
        return lambda: call.run("awq_edge_logits", x, y, *given)

    yield Measured("logits to float32, capped", rotated(make, VOCAB * 6), VOCAB * 6)


def sampling(call: Call) -> Iterator[Measured]:
    def make(seed: int, settings: dict[str, Any], adjusted: bool) -> Any:
        size = call.library.size("awq_edge_sample_workspace", 1, VOCAB)
        workspace = torch.zeros(size, dtype=torch.uint8, device="cuda")
        logits = call.random(1, VOCAB, seed=seed, scale=2.5)
        step, ids = torch.zeros(2, 2, dtype=torch.int64, device="cuda").unbind(0)
        parameters = call.sampling(settings)
        counts = torch.zeros(VOCAB, dtype=torch.int32, device="cuda")
        mask = torch.full((-(-VOCAB // 32),), -1, dtype=torch.int32, device="cuda")
        sampler = Sampler(
            dtype=call.code,
            rows=1,
            vocab=VOCAB,
            greedy=int(not settings),
            logits=logits.data_ptr(),
            sampling=parameters.data_ptr(),
            step=step.data_ptr(),
            counts=counts.data_ptr() if adjusted else None,
            mask=mask.data_ptr() if adjusted else None,
            ids=ids.data_ptr(),
        )
        kept = (logits, parameters, step, ids, counts, mask)
        return lambda: (call.run("awq_edge_sample", sampler, workspace, size), kept)

    drawn = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.01}
    for name, settings, adjusted in (
        ("greedy", {}, False),
        ("greedy, counts and mask", {}, True),
        ("drawn", drawn, False),
        ("drawn, counts and mask", drawn | {"repetition_penalty": 1.1}, True),
    ):
        nbytes = VOCAB * 2 + (VOCAB * 4 + VOCAB // 8 if adjusted else 0)
        calls = rotated(lambda seed, s=settings, a=adjusted: make(seed, s, a), VOCAB * 8)
        yield Measured(f"sampling, {name}", calls, nbytes)
    logits = call.random(1, VOCAB)
    size = call.library.size("awq_edge_log_probabilities_workspace", 1)
    workspace = torch.zeros(size, dtype=torch.uint8, device="cuda")
    ids, chosen = torch.zeros(1, dtype=torch.int64, device="cuda"), torch.zeros(1, device="cuda")
    top_ids = torch.zeros(MAX_TOP, dtype=torch.int64, device="cuda")
    top_values = torch.zeros(MAX_TOP, device="cuda")
    for top in (0, 5, MAX_TOP):
        given = (logits, ids, chosen, top_ids, top_values, 1, VOCAB, top, call.code)
        calls = [
            lambda given=given: call.run("awq_edge_log_probabilities", *given, workspace, size)
        ]
        yield Measured(f"log-probabilities, {top} likeliest", calls * 8, VOCAB * 2)


def dense(call: Call) -> Iterator[Measured]:
    for name, (n, k) in DENSE.items():
        nbytes = n * k * 2
        weights = [call.random(n, k, seed=seed) for seed in range(copies_beyond_cache(nbytes))]
        for m in (1, 16, 512) if name == "square" else (1, 16):
            x, y = call.random(m, k), call.poisoned(m, n)
            tactics = (Tactic.DECODE,) if m <= 16 else (Tactic.GEMM, Tactic.CUBLASLT)
            for tactic in tactics:
                calls = [_dense_call(call, weight, x, y, tactic) for weight in weights]
                label = f"16 bits, {name} {n}x{k}, m={m}, {tactic.name.lower()}"
                yield Measured(label, calls, nbytes, 2 * m * n * k)


def _dense_call(call: Call, weight: Any, x: Any, y: Any, tactic: Tactic) -> Callable[[], None]:
    n, k = weight.shape
    parameters = DenseWeight(
        in_features=k, out_features=n, dtype=call.code, weight=weight.data_ptr()
    )
    size = call.library.size("awq_edge_dense_workspace", parameters, len(x), tactic)
    workspace = torch.zeros(size, dtype=torch.uint8, device="cuda")
    given = (parameters, x, y, len(x), tactic, workspace, size)
    return lambda: call.run("awq_edge_dense_linear", *given)


def experts(call: Call) -> Iterator[Measured]:
    for name, (count, size, intermediate, top_k) in EXPERTS.items():
        made = random_experts(count, size, intermediate, top_k=top_k)
        each = sum(
            tensor.nbytes
            for linear in (made.gate_up[0], made.down[0])
            for tensor in (linear.qweight, linear.scales, linear.zeros)
        )
        for m in (1, 4, 16, 512, 2048):
            run = ExpertsCall(call.library, made, m)
            data = [inputs(m, size, count, torch.float16, seed) for seed in range(8)]
            chosen = [int(logits.topk(top_k).indices.unique().numel()) for logits, _ in data]
            calls = [lambda one=one, run=run: run(*one) for one in data]
            nbytes = each * sum(chosen) // len(chosen)
            yield Measured(
                f"experts of {name}, m={m}", calls, nbytes, 6 * m * top_k * size * intermediate
            )


if __name__ == "__main__":
    main()
