"""Compare this project's quantizers with peers on one model, through `awq-edge eval divergence`.

    python scripts/compare_quantizers.py run MODEL --work DIR --results DIR \
        --text wikitext-2/test.txt --calibration wikitext-2/valid.txt \
        [--device cuda] [--peer-python PYTHON] [--only 'autoround-*']
    python scripts/compare_quantizers.py table DIR --json docs/results/quantizers_NAME.json

`run` permutes the model's channels first (`experiments.permuted`), measures every row that is not
in --results yet, one file each, and so goes on where it was interrupted. --device several times
spreads the rows over several GPUs, one process each; seconds are then those of a shared machine.
Peers (AutoRound, llm-compressor, llama.cpp's formats through libggml) run in --peer-python, which
needs torch and transformers and

    pip install auto-round libggml-python gguf         # autoround-*, and llama.cpp's formats
    pip install llmcompressor                          # llmcompressor-*: it pins transformers

`table` prints the table and writes the rows into one file; --only takes names or patterns of rows.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from awq_edge.artifacts.directories import atomic_file
from awq_edge.errors import AwqEdgeError
from experiments.permuted import permute_channels
from experiments.quantizers.making import Setting
from experiments.quantizers.rows import chosen
from experiments.quantizers.run import Scoring, collect, run_rows
from experiments.quantizers.table import table_of


def main() -> int:
    arguments = parse()
    try:
        return tabulate(arguments) if arguments.command == "table" else run(arguments)
    except AwqEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run_parser = commands.add_parser("run", help="measure rows")
    add = run_parser.add_argument
    add("model", type=Path, help="directory of an unquantized model")
    add("--work", type=Path, required=True, help="folder for the models that are made")
    add("--results", type=Path, required=True, help="folder for the measured rows")
    add("--text", type=Path, required=True, help="text to score")
    add("--calibration", type=Path, required=True, help="text to calibrate with")
    add("--only", action="append", default=[], metavar="PATTERN", help="rows: 'refined-*'")
    add("--device", action="append", default=[], help="cpu, cuda, cuda:N; default: cpu")
    add("--peer-python", type=Path, help="interpreter of the peers")
    add("--group-size", type=int, default=64)
    add("--samples", type=int, default=128)
    add("--length", type=int, default=512)
    add("--seed", type=int, default=0)
    add("--steps", type=int, default=200, help="of peers that learn; default: theirs, 200")
    add("--window", type=int, default=1024)
    add("--stride", type=int, default=1024)
    add("--max-tokens", type=int, default=61440)
    add("--keep-order", action="store_true", help="leave the model's channels in their order")
    table_parser = commands.add_parser("table", help="print the table of measured rows")
    table_parser.add_argument("results", type=Path, nargs="+")
    table_parser.add_argument("--json", type=Path, help="write all rows here")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> int:
    """Measure the rows; 1 where some failed."""
    selected = chosen(arguments.only)
    for folder in (arguments.work, arguments.results):
        folder.mkdir(parents=True, exist_ok=True)
    model = arguments.model
    if not arguments.keep_order:
        model = arguments.work / f"{arguments.model.name}-permuted"
        if not model.exists():
            permute_channels(arguments.model, model)
    devices = arguments.device or ["cpu"]
    if len(devices) > 1:
        return spread(devices, list(selected))
    setting = Setting(
        model=model,
        work=arguments.work,
        calibration=arguments.calibration,
        samples=arguments.samples,
        length=arguments.length,
        seed=arguments.seed,
        group_size=arguments.group_size,
        steps=arguments.steps,
        device=devices[0],
        peer_python=arguments.peer_python,
    )
    scoring = Scoring(arguments.text, arguments.window, arguments.stride, arguments.max_tokens)
    failed = run_rows(selected, setting, scoring, arguments.results, note)
    if failed:
        note(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def spread(devices: list[str], names: list[str]) -> int:
    """One process of this script a device, with every n-th row; 1 where one of them failed."""
    command = [sys.executable, *without_options(sys.argv, "--device", "--only")]
    processes = []
    for index, device in enumerate(devices):
        own = [part for name in names[index :: len(devices)] for part in ("--only", name)]
        if own:
            processes.append(subprocess.Popen([*command, "--device", device, *own]))
    return max((process.wait() != 0 for process in processes), default=False) * 1


def without_options(words: list[str], *options: str) -> list[str]:
    """A command line without options that take one value each."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in options:
            skip = True
        elif not word.startswith(tuple(f"{option}=" for option in options)):
            kept.append(word)
    return kept


def tabulate(arguments: argparse.Namespace) -> int:
    """Print the table, and write the rows."""
    comparison = collect(arguments.results)
    table = table_of(comparison)
    print(f"{table.title}.\n\n{table.markdown()}")
    if arguments.json is not None:
        with atomic_file(arguments.json) as work:
            work.write_text(comparison.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return 0


def note(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
