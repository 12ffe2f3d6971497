"""Estimate what quantizing a large model takes: memory, traffic and time, from its configuration.

    python scripts/scaling_estimate.py --shape llama-3.1-405b [--budget "16 GiB"] [--gpus 8]
    python scripts/scaling_estimate.py --config DIR/config.json --method awq+gptq --json -

Sizes and operations are counted as the quantizer does them; rates (--float32-tflops and the others)
are assumptions until they are replaced by measured ones. docs/scaling.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ByteSize, TypeAdapter

from awq_edge.model.archs import Decoder, decoder_from_config
from awq_edge.quantizer.blocks.sizes import block_parameters, input_sizes, statistics_bytes
from awq_edge.quantizer.calibration.statistics import (
    _GRAM_TOKENS,
    _GRAM_TOKENS_PER_CHANNEL,
    plan_samples,
)
from awq_edge.quantizer.search.clipping import _RATIOS
from awq_edge.quantizer.search.scales import _COARSE_STEP, _SEARCH_ROWS, GRID

GROUP_SIZE = 128
BATCH = 16  # samples that a GPU runs at a time, see quantizer/stream.py
COMMON: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
SHAPES: dict[str, dict[str, Any]] = {
    # config.json of meta-llama/Llama-3.1-8B, -70B and -405B, without their rope scaling
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "llama-3.1-70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "llama-3.1-405b": {
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
    },
}
# Candidates of the scale search, at most: the coarse grid of two forms, then two neighbours of the
# two best of each at every halving of the step.
CANDIDATES = 2 * (GRID // _COARSE_STEP + 1) + (_COARSE_STEP.bit_length() - 1) * 2 * 2 * 2
# Errors on all rows and the whole G: with the scale, before and after the clip, and of plain
# rounding; in the report, of the weight itself and of what is stored.
FULL_ERRORS = 5
# Times that a weight is quantized for its error: the clip ratios, and three of the errors above.
QUANTIZATIONS = len(_RATIOS) + 3
# float32 values that are read or written for each of them (an assumption: minima and maxima,
# scale, quotient, rounding, limits, difference, product).
PASSES = 16


@dataclass(frozen=True)
class Rates:
    """What the machines achieve. tflops: 1e12 operations/s; the rest: GB/s (1e9 bytes/s).

    float32: matrix products. float64: GPTQ's factors. memory: a GPU's own. host: between host and
    GPU. store: into and out of the object store. network: into one worker. disk: reading weights.
    """

    float32_tflops: float = 40.0
    float64_tflops: float = 30.0
    memory: float = 2500.0
    host: float = 20.0
    store: float = 3.0
    network: float = 3.0
    disk: float = 2.0


@dataclass(frozen=True)
class Work:
    """Operations of one block (2 for a multiplication and an addition), and bytes in its GPU."""

    forward: float
    gram: float
    search: float
    clip: float
    errors: float
    gptq_float32: float
    gptq_float64: float
    check: float
    element_bytes: float


@dataclass(frozen=True)
class Sizes:
    """Bytes. weights: of a block, as stored. hidden: of all samples. task: what a task receives,
    result: what it sends back. checkpoint: of the 4-bit weights of all blocks."""

    parameters: int
    weights: int
    float32: int
    statistics: int
    hidden: int
    first_batch: int
    task: int
    result: int
    model: int
    checkpoint: int


@dataclass(frozen=True)
class Seconds:
    """Of one block. driver: forward pass, statistics, shipping, check. worker: receiving, work."""

    read: float
    forward: float
    ship: float
    check: float
    receive: float
    work: float

    @property
    def driver(self) -> float:
        """With weights read twice: the fold is checked on them when the outcome is there."""
        return 2 * self.read + self.forward + self.ship + self.check

    @property
    def worker(self) -> float:
        return self.receive + self.work

    @property
    def local(self) -> float:
        return self.read + self.forward + self.work + self.check


def count_sizes(decoder: Decoder, tokens: int, length: int, budget: int) -> Sizes:
    """layer 0 stands for all."""
    parameters = block_parameters(decoder, 0)
    statistics = statistics_bytes(decoder, 0, budget)
    # Codes of 4 bits; a 16-bit scale and a 4-bit zero point for each group.
    result = int(parameters * (4 + (16 + 4) / GROUP_SIZE) / 8)
    outside = 2 * decoder.vocab_size * decoder.embedding_size * (2 - decoder.tied_embeddings)
    return Sizes(
        parameters=parameters,
        weights=2 * parameters,
        float32=4 * parameters,
        statistics=statistics,
        hidden=4 * tokens * decoder.hidden_size,
        first_batch=4 * BATCH * length * decoder.hidden_size,
        task=2 * parameters + statistics,
        result=result,
        model=2 * parameters * decoder.num_layers + outside,
        checkpoint=result * decoder.num_layers + outside,
    )


def count_work(decoder: Decoder, tokens: int, length: int, budget: int, method: str) -> Work:
    """layer 0 stands for all; every expert counts as if each token were sent to it."""
    plan = plan_samples(input_sizes(decoder, 0), budget)
    sizes = input_sizes(decoder, 0)
    inputs = {n: name for name, linears in decoder.inputs(0).items() for n in linears}
    linears = decoder.linears(0)
    weights = sum(each.in_features * each.out_features for each in linears)
    attention = 4 * length * decoder.num_heads * decoder.head_size
    block = 2 * weights + attention

    def error(linear: Any, rows: int) -> float:
        """Of trace(D G D^T), or of D X^T with a sample X."""
        width = plan[inputs[linear.name]] or linear.in_features
        return 2.0 * rows * linear.in_features * width

    exact = {name: size for name, size in sizes.items() if plan[name] is None}
    gram_tokens = {
        name: min(tokens, max(_GRAM_TOKENS, _GRAM_TOKENS_PER_CHANNEL * size))
        for name, size in exact.items()
    }
    search = sum(error(each, min(_SEARCH_ROWS, each.out_features)) for each in linears)
    has_awq, has_gptq = "awq" in method, "gptq" in method
    factored = exact if has_gptq else {}
    return Work(
        forward=float(tokens * block),
        gram=sum(1.0 * gram_tokens[name] * size**2 for name, size in exact.items()),
        search=CANDIDATES * search if has_awq else 0.0,
        clip=2.0 * len(_RATIOS) * weights * GROUP_SIZE if has_awq else 0.0,
        # GPTQ's codes and the nearest ones are compared.
        errors=sum(error(each, each.out_features) for each in linears)
        * (FULL_ERRORS + 2 * has_gptq),
        # Column by column, each error goes into the columns that follow.
        gptq_float32=sum(
            1.0 * each.out_features * each.in_features**2
            for each in linears
            if inputs[each.name] in factored
        ),
        # Two Cholesky factors, n^3 / 3 each, and the inverse, 2 n^3 / 3.
        gptq_float64=sum(4 / 3 * size**3 for size in factored.values()),
        check=2.0 * BATCH * length * block,
        element_bytes=4.0 * weights * PASSES * QUANTIZATIONS if has_awq else 0.0,
    )


def seconds_of_block(sizes: Sizes, work: Work, rates: Rates) -> Seconds:
    giga = 1e9
    on_gpu = work.search + work.clip + work.errors + work.gptq_float32
    return Seconds(
        read=sizes.weights / giga / rates.disk + sizes.weights / giga / rates.host,
        forward=(work.forward + work.gram) / rates.float32_tflops / 1e12,
        ship=sizes.task / giga * (1 / rates.host + 1 / rates.store),
        check=work.check / rates.float32_tflops / 1e12,
        receive=(sizes.task + sizes.result) / giga / rates.network + sizes.task / giga / rates.host,
        work=on_gpu / rates.float32_tflops / 1e12
        + work.gptq_float64 / rates.float64_tflops / 1e12
        + work.element_bytes / giga / rates.memory,
    )


def total_seconds(seconds: Seconds, layers: int, workers: int) -> float:
    """Of the whole model. workers: GPUs beside the driver's, 0 for --executor local.

    The driver and the workers overlap: the slower of the two decides, after the first block.
    """
    if workers == 0:
        return layers * seconds.local
    return layers * max(seconds.driver, seconds.worker / workers) + min(
        seconds.driver + seconds.worker, seconds.local + seconds.ship + seconds.receive
    )


def bottleneck(seconds: Seconds, workers: int) -> str:
    if workers == 0:
        parts = {"work": seconds.work, "forward": seconds.forward, "reading": seconds.read}
        return max(parts, key=lambda name: parts[name])
    if seconds.worker / workers > seconds.driver:
        return "the workers"
    parts = {
        "the driver's forward pass": seconds.forward,
        "the driver's reading": 2 * seconds.read,
        "the driver's shipping": seconds.ship,
    }
    return max(parts, key=lambda name: parts[name])


def estimate(decoder: Decoder, arguments: argparse.Namespace, rates: Rates) -> dict[str, Any]:
    tokens = arguments.samples * arguments.length
    budget = int(TypeAdapter(ByteSize).validate_python(arguments.budget))
    sizes = count_sizes(decoder, tokens, arguments.length, budget)
    work = count_work(decoder, tokens, arguments.length, budget, arguments.method)
    seconds = seconds_of_block(sizes, work, rates)
    return {
        "layers": decoder.num_layers,
        "method": arguments.method,
        "tokens": tokens,
        "budget": budget,
        "samples_by_input": plan_samples(input_sizes(decoder, 0), budget),
        "sizes": asdict(sizes),
        "work": asdict(work),
        "rates": asdict(rates),
        "seconds": asdict(seconds)
        | {"driver": seconds.driver, "worker": seconds.worker, "local": seconds.local},
        "runs": [
            {
                "workers": workers,
                "seconds": total_seconds(seconds, decoder.num_layers, workers),
                "bottleneck": bottleneck(seconds, workers),
            }
            for workers in arguments.gpus
        ],
    }


def print_tables(report: dict[str, Any]) -> None:
    """As Markdown."""
    sampled = {k: v for k, v in report["samples_by_input"].items() if v is not None}
    notes = ", ".join(f"{name}: {count} tokens" for name, count in sampled.items())
    print(
        f"{report['layers']} blocks, {report['method']}, {report['tokens']} tokens; statistics in"
    )
    print(f"{report['budget'] / 2**30:g} GiB ({notes or 'G of every input'})\n")
    print("| bytes | GB |\n| --- | --- |")
    for name, size in report["sizes"].items():
        if name != "parameters":
            print(f"| {name} | {size / 1e9:.2f} |")
    print("\n| work on a block | |\n| --- | --- |")
    for name, count in report["work"].items():
        unit = "TB" if name == "element_bytes" else "TFLOP"
        print(f"| {name} | {count / 1e12:.1f} {unit} |")
    print("\n| of a block | s |\n| --- | --- |")
    for name, value in report["seconds"].items():
        print(f"| {name} | {value:.1f} |")
    print("\n| run | hours | limited by |\n| --- | --- | --- |")
    for run in report["runs"]:
        name = f"ray, {run['workers']} GPUs" if run["workers"] else "local"
        print(f"| {name} | {run['seconds'] / 3600:.2f} | {run['bottleneck']} |")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--shape", choices=sorted(SHAPES))
    which.add_argument("--config", type=Path, help="a config.json")
    parser.add_argument("--method", default="awq", choices=("awq", "gptq", "awq+gptq"))
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--budget", default="2 GiB", help="statistics_budget_bytes of the recipe")
    parser.add_argument("--gpus", type=int, nargs="+", default=[0, 1, 2, 4, 8, 16])
    parser.add_argument("--json", help="write everything here; - : alone, out")
    for name, value in asdict(Rates()).items():
        unit = "" if name.endswith("tflops") else "-gbs"
        flag = f"--{name.replace('_', '-')}{unit}"
        parser.add_argument(flag, dest=name, type=float, default=value, help=f"default {value:g}")
    arguments = parser.parse_args(argv)
    if arguments.config:
        config = json.loads(arguments.config.read_text(encoding="utf-8"))
    else:
        config = COMMON | SHAPES[arguments.shape]
    rates = Rates(**{name: getattr(arguments, name) for name in asdict(Rates())})
    report = estimate(decoder_from_config(config), arguments, rates)
    if arguments.json != "-":
        print_tables(report)
    if arguments.json:
        text = json.dumps(report, indent=1) + "\n"
        if arguments.json == "-":
            print(text, end="")
        else:
            Path(arguments.json).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
