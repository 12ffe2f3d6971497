"""Decode speed on one GPU: Hugging Face in fp16, eager and compiled; the cuda runtime in 4 bits.

    python scripts/bench_decode.py [--context 0 --context 1024 --context 4096] [--json FILE]

A random model of Llama-2-7B's shape, made on the GPU: nothing is downloaded or read. All sides
decode greedily, batch 1, the next token chosen on the GPU; nothing waits for the host within a
repeat. A repeat is `--steps` steps between two CUDA events, and counts as its mean; the figure is
the median of the repeats. The roofline is what a step must read (weights, and the KV cache up to
the step's position) over the bandwidth of a copy, measured in the same process.

`with_logits_on_the_host` is what a session's `decode` does: float32 logits of every step in host
memory, which is what `awq-edge run` waits for.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_program import LLAMA_2_7B, Shape, Variant, fill_random, random_program, row_tensors

from awq_edge.artifacts.provenance import source_commit, versions
from awq_edge.kernels.kernels import load_kernels
from awq_edge.runtime.backends.cuda.device_torch import CudaDevice
from awq_edge.runtime.backends.cuda.executor import Executor
from awq_edge.runtime.backends.cuda.program import CudaProgram

SIDES = ("awq-edge", "hf-eager", "hf-compiled")
COPY_BYTES = 2 << 30
SHAPES: dict[str, Shape] = {
    "llama-2-7b": LLAMA_2_7B,
    "tiny": Shape(4096, 1024, 2816, 4, 8, 4, 128, 4608),  # to try the script
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-2-7b")
    parser.add_argument("--side", action="append", choices=SIDES, help="default: all")
    parser.add_argument("--context", action="append", type=int, help="default: 0, 1024, 4096")
    parser.add_argument("--bits", type=int, default=4, choices=(3, 4, 8))
    parser.add_argument("--lm-head-bits", type=int, default=8, choices=(4, 8, 16))
    parser.add_argument("--steps", type=int, default=64, help="of a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--commit", default=source_commit(), help="of these sources")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    shape, contexts = SHAPES[arguments.shape], arguments.context or [0, 1024, 4096]
    timing = Timing(arguments.steps, arguments.repeats)
    bandwidth = copy_bandwidth()
    report: dict[str, Any] = {
        "what": f"decode, batch 1, {arguments.shape}, random weights",
        "machine": machine(arguments.commit),
        "steps": arguments.steps,
        "repeats": arguments.repeats,
        "copy_bytes_per_second": bandwidth,
        "rows": [],
    }
    variant = Variant(bits=arguments.bits, lm_head_bits=arguments.lm_head_bits)
    measures: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "awq-edge": lambda: ours(shape, variant, contexts, timing),
        "hf-eager": lambda: hugging_face(shape, contexts, timing, is_compiled=False),
        "hf-compiled": lambda: hugging_face(shape, contexts, timing, is_compiled=True),
    }
    for side in arguments.side or SIDES:
        for row in measures[side]():
            read = row["weight_bytes"] + row["kv_bytes"]
            row["bytes_per_second"] = read * row["tokens_per_second"]
            row["share_of_roofline"] = row["bytes_per_second"] / bandwidth
            report["rows"].append(row)
            report["ratios"] = ratios(report["rows"])
            print_row(row)
            if arguments.json:  # after each row: a run that is cut off has what it has measured
                arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        gc.collect()
        torch.cuda.empty_cache()


class Timing:
    """Seconds of a step by CUDA events."""

    def __init__(self, steps: int, repeats: int) -> None:
        self.steps = steps
        self.repeats = repeats

    def seconds(self, prepare: Callable[[], None], step: Callable[[], object]) -> list[float]:
        """Seconds of a step in each repeat, after one that warms up. prepare: back to the start."""
        found = []
        for repeat in range(self.repeats + 1):
            prepare()
            torch.cuda.synchronize()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(self.steps):
                step()
            end.record()
            end.synchronize()
            if repeat:
                found.append(begin.elapsed_time(end) / 1e3 / self.steps)
        return found


def ours(
    shape: Shape, variant: Variant, contexts: list[int], timing: Timing
) -> Iterator[dict[str, Any]]:
    """The cuda runtime's captured steps."""
    device = CudaDevice()
    program = random_program(shape, variant)
    weights = device.zeros(program.weight_bytes)
    with device.scope():
        fill_random(program, device.octets(weights, (program.weight_bytes,)))
        room = max(contexts) + timing.steps
        model = Executor(program, weights, load_kernels(), device, context=room, max_rows=16)
        for name, state in program.state.items():
            octets = device.octets(model.state[name], (state.nbytes(room),))
            octets.view(torch.float16).normal_()
        host = device.host_zeros((1, shape.vocab_size), np.float32)
        device.synchronize()
    greedy, step = device.capture(model.greedy_step), device.capture(model.step)
    for context in contexts:
        begin_state = np.array([context, 0, 1, 0], np.int64)

        def prepare(begin_state: np.ndarray[Any, Any] = begin_state) -> None:
            device.upload(model.state_input, begin_state)

        def to_host() -> None:
            step()
            device.download(host, model.logits)
            device.synchronize()

        with device.scope():
            seconds = timing.seconds(prepare, greedy)
            prepare()
            begin = time.perf_counter()
            for _ in range(timing.steps):
                to_host()
            with_host = (time.perf_counter() - begin) / timing.steps
        row = row_of("awq-edge", context, seconds, weight_bytes(program), shape, timing)
        row |= {"bits": variant.bits, "lm_head_bits": variant.lm_head_bits}
        yield row | {"tokens_per_second_with_logits_on_the_host": 1 / with_host}


def hugging_face(
    shape: Shape, contexts: list[int], timing: Timing, *, is_compiled: bool
) -> Iterator[dict[str, Any]]:
    """transformers in fp16 with its default attention: a growing cache, or a static one and
    torch.compile as `generate` uses it."""
    model = llama(shape)
    size = sum(p.nbytes for p in model.parameters()) - model.model.embed_tokens.weight.nbytes
    name = "hf-compiled" if is_compiled else "hf-eager"
    for context in contexts:
        with torch.inference_mode():
            seconds, compile_seconds = _hugging_face_at(model, context, timing, is_compiled)
        row = row_of(name, context, seconds, size, shape, timing)
        yield row | {"compile_seconds": compile_seconds}


def _hugging_face_at(
    model: Any, context: int, timing: Timing, is_compiled: bool
) -> tuple[list[float], float | None]:
    """Seconds of a step in each repeat, and of the compilation."""
    from transformers import CompileConfig, DynamicCache, StaticCache

    ids = torch.randint(0, model.config.vocab_size, (1, max(context, 1)), device=model.device)
    token = torch.ones((1, 1), dtype=torch.int64, device=model.device)
    room = context + timing.steps + 1
    cache = StaticCache(model.config, room) if is_compiled else DynamicCache(config=model.config)
    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    # As `generate` does for a static cache: the mask is made outside of what is compiled, so that
    # one compilation serves every length of the cache (the graphs are captured for each).
    position = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    columns = torch.arange(room, device=model.device)
    given: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
    call, compile_seconds = model, None
    if is_compiled:
        call = model.get_compiled_call(CompileConfig(fullgraph=True, dynamic=True))

    def prepare() -> None:
        back_to(cache, context)
        position.fill_(context)

    def step() -> None:
        if is_compiled:
            given["attention_mask"] = (columns <= position)[None, None]
            given["position_ids"] = position
        logits = call(token, **given).logits
        token.copy_(logits[:, -1].argmax(-1, keepdim=True))
        position.add_(1)

    if is_compiled:
        begin = time.perf_counter()
        for _ in range(3):  # compiles, captures, replays
            prepare()
            step()
        torch.cuda.synchronize()
        compile_seconds = time.perf_counter() - begin
    return timing.seconds(prepare, step), compile_seconds


def back_to(cache: Any, context: int) -> None:
    """Forget what was decoded: the cache holds `context` positions again."""
    for layer in cache.layers:
        length = getattr(layer, "cumulative_length", None)
        if isinstance(length, torch.Tensor):
            length.fill_(context)
        else:
            layer.keys, layer.values = (x[:, :, :context] for x in (layer.keys, layer.values))


def llama(shape: Shape) -> Any:
    """A random LlamaForCausalLM in fp16 on the GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.context,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("cuda"):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def weight_bytes(program: CudaProgram) -> int:
    """Bytes of weights that one step reads; of the embedding and the rotary tables one row."""
    names = row_tensors(program)
    rows = sum(program.tensors[name].nbytes // program.tensors[name].shape[0] for name in names)
    whole = sum(p.nbytes for name, p in program.tensors.items() if name not in names)
    return whole + rows


def row_of(
    side: str, context: int, seconds: list[float], weights: int, shape: Shape, timing: Timing
) -> dict[str, Any]:
    """One figure. kv_bytes: keys and values in 16 bits, up to the middle of a repeat."""
    positions = context + timing.steps / 2
    return {
        "side": side,
        "context": context,
        "tokens_per_second": 1 / statistics.median(seconds),
        "tokens_per_second_of_repeats": [1 / value for value in seconds],
        "weight_bytes": weights,
        "kv_bytes": int(4 * shape.num_layers * shape.num_kv_heads * shape.head_size * positions),
    }


def copy_bandwidth() -> float:
    """Bytes/s that a copy on the device reads and writes; the median of ten."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = Timing(4, 10).seconds(lambda: None, lambda: target.copy_(source))
    return 2 * COPY_BYTES / statistics.median(seconds)


def ratios(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How many times as fast as the others the cuda runtime is, by context."""
    rates = {(row["side"], row["context"]): row["tokens_per_second"] for row in rows}
    return {
        side: {
            str(context): rates["awq-edge", context] / rate
            for (other, context), rate in rates.items()
            if other == side and ("awq-edge", context) in rates
        }
        for side in SIDES[1:]
    }


def machine(commit: str | None) -> dict[str, Any]:
    """What the figures were measured on."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "versions": versions(("torch", "transformers", "triton")),
        "commit": commit,
    }


def print_row(row: dict[str, Any]) -> None:
    print(
        f"{row['side']:12} context {row['context']:5}: {row['tokens_per_second']:7.1f} tokens/s, "
        f"{row['bytes_per_second'] / 1e9:6.0f} GB/s, {row['share_of_roofline']:6.1%} of the roof",
        flush=True,
    )


if __name__ == "__main__":
    main()
