"""Compare decode speed on the CPU with onnxruntime-genai, on one random 1.1 B checkpoint.

    python scripts/bench_cpu.py [--rounds 5] [--steps 64] [--json docs/results/bench_cpu.json]

Both sides run the same AutoAWQ checkpoint of TinyLlama's shape with the same threads, accuracy
level 4, float32 activations and 4-bit lm_head; that the two graphs agree in this is read from them
and written down. Each side is a process that stays loaded; they decode in turns, a few steps at a
time. A turn during which other processes took more than a tenth of the cores is repeated, as long
as --wait allows, and else does not count. genai is a dependency of this benchmark alone: it gets
its own virtual environment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from random_checkpoint import GROUP_SIZE, write_random_checkpoint

from awq_edge.artifacts.cache import cache_directory
from awq_edge.artifacts.provenance import source_commit, versions
from awq_edge.device.cpu import busy_seconds, describe_cpu
from awq_edge.process import children
from awq_edge.runtime.metrics import spread

SHAPE = "tinyllama-1.1b"
ACCURACY_LEVEL = 4
LM_HEAD_BITS = 4  # what genai's builder makes of an unquantized lm_head with `-p int4`
CONTEXT = 2048
WARMUP_STEPS = 2  # of a turn: the other side's weights have just been in the cache
OTHERS_LIMIT = 0.1  # share of the cores that other processes may take during a turn
GENAI = "onnxruntime-genai==0.18.*"
# What genai's model builder imports; torch exactly, because pip would else take a CUDA build.
BUILDER = ("torch==2.13.0", "transformers", "onnx", "onnx_ir")
SIDES = ("awq-edge", "onnxruntime-genai")
HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="turns of each side")
    parser.add_argument("--steps", type=int, default=24, help="timed decode steps of a turn")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=describe_cpu().cores)
    parser.add_argument("--wait", type=float, default=60, help="seconds for one turn to be quiet")
    parser.add_argument("--folder", type=Path, default=cache_directory() / "bench_cpu")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        decode_here(arguments.child, arguments.prompt_tokens, arguments.threads)
        return
    folder = arguments.folder
    checkpoint, bundle, model = folder / "checkpoint", folder / "bundle", folder / "genai"
    prepare(folder, checkpoint, bundle, model)
    sizes = [str(arguments.prompt_tokens), str(arguments.threads)]
    flags = ["--prompt-tokens", sizes[0], "--threads", sizes[1]]
    commands = {
        SIDES[0]: [sys.executable, __file__, "--child", str(bundle), *flags],
        SIDES[1]: [str(genai_python(folder)), str(HERE / "genai_decode.py"), str(model), *sizes],
    }
    report: dict[str, Any] = {
        "what": f"decode tokens/s, {SHAPE}, random weights, 4-bit AutoAWQ, group {GROUP_SIZE}",
        "accuracy_level": ACCURACY_LEVEL,
        "lm_head_bits": LM_HEAD_BITS,
        "activation_dtype": "float32",
        "lm_head": dict(zip(SIDES, map(lm_head_of, (bundle, model)), strict=True)),
        "prompt_tokens": arguments.prompt_tokens,
        "steps": arguments.steps,
        "threads": arguments.threads,
        "machine": machine(),
    }
    sides = {name: Side(command) for name, command in commands.items()}
    report["loaded"] = {name: side.loaded for name, side in sides.items()}
    report["rounds"] = [
        round_of(sides, index, arguments.steps, arguments.wait) for index in range(arguments.rounds)
    ]
    for side in sides.values():
        side.close()
    report |= summary(report["rounds"])
    print_table(report)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def prepare(folder: Path, checkpoint: Path, bundle: Path, model: Path) -> None:
    """Checkpoint, bundle, genai's environment and model, each made once and kept in `folder`."""
    from awq_edge.exporter.bundle import export_checkpoint
    from awq_edge.recipe.recipes import load_recipe

    folder.mkdir(parents=True, exist_ok=True)
    if not checkpoint.exists():
        work = folder / "checkpoint.partial"
        shutil.rmtree(work, ignore_errors=True)
        write_random_checkpoint(SHAPE, work)
        # genai's builder copies a tokenizer; the demo model's will do, as no text is involved.
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(HERE.parent / "awq_edge" / "data" / "demo" / name, work / name)
        work.rename(checkpoint)
    # Made anew every time: the exporter is what may have changed.
    recipe = load_recipe("cpu").overridden(
        {"runtime.accuracy_level": ACCURACY_LEVEL, "runtime.activation_dtype": "float32"}
    )
    recipe = recipe.asking(lm_head_bits=LM_HEAD_BITS)
    export_checkpoint(checkpoint, bundle, recipe, model_name=SHAPE, overwrite=True)
    if not model.exists():
        build_genai(folder, checkpoint, model)


def build_genai(folder: Path, checkpoint: Path, model: Path) -> None:
    """Install genai into its own environment and let its builder convert the checkpoint."""
    python, log = genai_python(folder), folder / "genai.log"
    option = f"int4_accuracy_level={ACCURACY_LEVEL}"
    work = folder / "genai.partial"
    shutil.rmtree(work, ignore_errors=True)
    build = ["-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(work)]
    commands = [
        [sys.executable, "-m", "venv", str(folder / "genai-venv")],
        [str(python), "-m", "pip", "install", "--quiet", GENAI, *BUILDER],
        [str(python), *build, "-p", "int4", "-e", "cpu", "--extra_options", option],
    ]
    with open(log, "w", encoding="utf-8") as output:
        for command in commands:
            print(" ".join(command[1:]), file=sys.stderr)
            with children.child(command, stdout=output, stderr=subprocess.STDOUT) as process:
                code = process.wait()
            if code:
                sys.exit(f"error: {' '.join(command)} failed; see {log}")
    work.rename(model)


def lm_head_of(directory: Path) -> dict[str, int]:
    """Attributes of the graph's lm_head. Ends the program where they are not what is compared."""
    import onnx

    model = onnx.load(directory / "model.onnx", load_external_data=False)
    node = next(n for n in model.graph.node if "lm_head" in n.name and n.op_type == "MatMulNBits")
    found = {a.name: a.i for a in node.attribute}
    if (found["bits"], found.get("accuracy_level")) != (LM_HEAD_BITS, ACCURACY_LEVEL):
        sys.exit(f"error: {directory}: lm_head is {found}; the comparison would not be fair")
    return found | {"zero_points": int(len(node.input) > 3 and node.input[3] != "")}


def genai_python(folder: Path) -> Path:
    return folder / "genai-venv" / "bin" / "python"


class Side:
    """A process that has loaded its model and decodes as many steps as a line of its input says."""

    def __init__(self, command: list[str]) -> None:
        pipe = subprocess.PIPE
        self._end = contextlib.ExitStack()
        self._process = self._end.enter_context(children.child(command, stdin=pipe, stdout=pipe))
        self.loaded = self._read()

    def decode(self, steps: int) -> dict[str, Any]:
        """Seconds of each step, CPU seconds of the process for all of them."""
        assert self._process.stdin is not None
        print(steps, file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        self._process.communicate()
        self._end.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"error: {self._process.args} ended with exit code {self._process.wait()}")
        return json.loads(line)


def decode_here(bundle: Path, prompt_tokens: int, threads: int) -> None:
    """What genai_decode.py does, with awq-edge: see `Side`."""
    from awq_edge.artifacts.directories import Bundle
    from awq_edge.runtime.backends import open_session
    from awq_edge.runtime.sampling import Sampler, Sampling
    from awq_edge.runtime.session import SessionOptions

    start = time.perf_counter()
    options = SessionOptions(context=CONTEXT, threads=threads)
    session = open_session(Bundle.open(bundle, verify=False), options)
    load = time.perf_counter() - start
    sampler = Sampler(Sampling())
    start = time.perf_counter()
    token = sampler.choose(session.prefill([3 + i for i in range(prompt_tokens)]))
    prefill = time.perf_counter() - start
    loaded = {"load": load, "prefill": prefill, "versions": session.info.versions}
    print(json.dumps(loaded), flush=True)
    for line in sys.stdin:
        seconds, cpu = [], time.process_time()
        for _ in range(int(line)):
            start = time.perf_counter()
            token = sampler.choose(session.decode(token))
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": seconds, "cpu": time.process_time() - cpu}), flush=True)


def round_of(sides: dict[str, Side], index: int, steps: int, wait: float) -> dict[str, Any]:
    """One turn of each side, in an order that alternates."""
    order = SIDES if index % 2 == 0 else SIDES[::-1]
    return {name: turn(sides[name], steps, wait) for name in order}


def turn(side: Side, steps: int, wait: float) -> dict[str, Any]:
    """A turn that other processes left alone, or the last one within `wait` seconds.

    others: share of the cores that they took, None where the system does not tell.
    """
    deadline = time.perf_counter() + wait
    while True:
        busy, start = busy_seconds(), time.perf_counter()
        result = side.decode(WARMUP_STEPS + steps)
        wall, after = time.perf_counter() - start, busy_seconds()
        others = None
        if busy is not None and after is not None:
            cores = os.cpu_count() or 1
            others = max(0.0, (after - busy - result["cpu"]) / (wall * cores))
        quiet = others is None or others <= OTHERS_LIMIT
        if quiet or time.perf_counter() > deadline:
            timed = result["seconds"][WARMUP_STEPS:]
            return {
                "quiet": quiet,
                "others": others,
                "tokens_per_second": 1 / statistics.median(timed),
                "step_seconds": [round(seconds, 6) for seconds in timed],
            }
        time.sleep(0.5)


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the quiet turns; the ratio over the rounds in which both were."""
    rates = {
        side: [entry[side]["tokens_per_second"] for entry in rounds if entry[side]["quiet"]]
        for side in SIDES
    }
    ratios = [
        entry[SIDES[0]]["tokens_per_second"] / entry[SIDES[1]]["tokens_per_second"]
        for entry in rounds
        if all(entry[side]["quiet"] for side in SIDES)
    ]
    if not ratios:
        sys.exit("error: no round was quiet; run it when the machine has nothing else to do")
    return {
        "decode_tokens_per_second": {side: _spread(values) for side, values in rates.items()},
        "ratio": _spread(ratios),
    }


def _spread(values: list[float]) -> dict[str, float]:
    found = spread(values)
    assert found is not None  # a round was quiet
    return {"median": found.median, "p10": found.p10, "p90": found.p90, "turns": found.count}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = describe_cpu()
    return {
        "cpu": cpu.name,
        "cores": cpu.cores,
        "memory_bytes": cpu.memory_bytes,
        "power_mode": cpu.power_mode,
        "versions": versions(("numpy", "onnxruntime")),
        "commit": source_commit(),
    }


def print_table(report: dict[str, Any]) -> None:
    """The figures as a Markdown table."""
    facts = report["machine"]
    print(f"{facts['cpu']}, {report['threads']} threads, commit {facts['commit']}")
    print("| decode | median | p10 to p90 | quiet turns |")
    print("| --- | --- | --- | --- |")
    rows = {**report["decode_tokens_per_second"], "ratio": report["ratio"]}
    for name, row in rows.items():
        spread = f"{row['p10']:.2f} to {row['p90']:.2f}"
        print(f"| {name} | {row['median']:.2f} | {spread} | {row['turns']} |")


if __name__ == "__main__":
    main()
