"""Registers, shared memory and spills of every kernel, as ptxas reports them, for each target.

    python scripts/kernel_resources.py --json docs/results/kernel_resources.json

Compiles the kernels in build/plugins unless that has been done for these very sources, there or by
another checkout, which leaves its result in awq-edge's cache; the tests
(tests/kernels/test_compiled.py) do the same. AWQ_EDGE_TEST_ARCHITECTURES=86,90 compiles for those
alone, into a folder of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from awq_edge.artifacts.cache import cache_directory
from awq_edge.artifacts.directories import atomic_directory, atomic_file
from awq_edge.kernels import build as plugin_build
from awq_edge.kernels.architectures import TARGETS, parse_architecture
from awq_edge.kernels.build import compile_libraries
from awq_edge.kernels.kernels import FILE_NAME
from awq_edge.kernels.toolchain import Toolchain, find_toolchain

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "plugins"
LAUNCHER = ROOT / "scripts" / "ptxas_log"
STAMP = "sources.sha256"
VARIABLE = "AWQ_EDGE_TEST_ARCHITECTURES"
# What is read of a build: the library, ptxas' words of every object, and the objects.
READ = (FILE_NAME, "CMakeFiles/awq_edge_kernels.dir/kernels/*.o*")
KEPT_BUILDS = 4  # in the cache, some 40 MB each

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)\w*'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


class Usage(TypedDict):
    """registers: of one thread. shared_bytes: static. spill_bytes: stores and loads together."""

    registers: int
    shared_bytes: int
    spill_bytes: int


# Kernel ("norm.cu: norm_kernel<__half, 8>") -> compute capability ("87") -> usage.
Table = dict[str, dict[str, Usage]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the table here")
    arguments = parser.parse_args()
    tools = find_toolchain()
    table = read_resources(compiled(tools))
    spilling = {
        f"{name} (sm_{architecture}): {usage['spill_bytes']} bytes"
        for name, row in table.items()
        for architecture, usage in row.items()
        if usage["spill_bytes"]
    }
    print(f"{len(table)} kernels, {len(spilling)} of them spill somewhere")
    print("\n".join(sorted(spilling)))
    if arguments.json is not None:
        with atomic_file(arguments.json) as work:
            work.write_text(as_json(tools, table), encoding="utf-8")


def architectures(tools: Toolchain) -> tuple[int, ...]:
    """What is compiled for: the targets that the toolkit knows, or those of the variable."""
    chosen = os.environ.get(VARIABLE)
    wanted = tuple(map(parse_architecture, chosen.split(","))) if chosen else TARGETS
    return tuple(target for target in wanted if target in tools.known_architectures)


def compiled(
    tools: Toolchain, targets: Sequence[int] | None = None, options: Sequence[str] = ()
) -> Path:
    """A folder with the library and what ptxas said; built if it must be.

    targets: `architectures`, or others.
    options: further arguments of cmake.
    """
    targets = tuple(targets or architectures(tools))
    suffix = "" if targets == TARGETS else "-" + "-".join(map(str, targets))
    build = ROOT / "build" / f"plugins{suffix}"
    stamp, digest = build / STAMP, _digest(tools, targets, options)
    if stamp.is_file() and stamp.read_text() == digest:
        return build
    kept = cache_directory() / "compiled-kernels" / digest
    if kept.is_dir():
        return kept
    stamp.unlink(missing_ok=True)
    launcher = f"-DCMAKE_CUDA_COMPILER_LAUNCHER={LAUNCHER}"
    compile_libraries(
        tools, SOURCES, build, targets, options=[launcher, *options], progress=_progress_to_stderr
    )
    stamp.write_text(digest)
    _keep(build, kept)
    return build


def _keep(build: Path, kept: Path) -> None:
    """Put what is read of a build into the cache, for other checkouts of the same sources."""
    shutil.rmtree(kept, ignore_errors=True)
    with atomic_directory(kept) as work:
        for path in (path for pattern in READ for path in build.glob(pattern)):
            target = work / path.relative_to(build)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    builds = (path for path in kept.parent.iterdir() if not path.name.startswith("."))
    for old in sorted(builds, key=lambda path: path.stat().st_mtime)[:-KEPT_BUILDS]:
        shutil.rmtree(old, ignore_errors=True)


def read_resources(build: Path) -> Table:
    """The table of a build folder, sorted by kernel and compute capability."""
    table: Table = {}
    for log in sorted(build.glob("CMakeFiles/awq_edge_kernels.dir/kernels/*.cu.o.log")):
        source = log.name.removesuffix(".o.log")
        for symbol, architecture, usage in parse_ptxas(log.read_text(encoding="utf-8")):
            table.setdefault(f"{source}: {symbol}", {})[architecture] = usage
    names = dict(zip(table, demangle([name.partition(": ")[2] for name in table]), strict=True))
    readable = {f"{name.partition(': ')[0]}: {names[name]}": row for name, row in table.items()}
    if len(readable) != len(table):
        raise AssertionError("two kernels of one file have the same name")
    return {
        name: dict(sorted(readable[name].items(), key=lambda item: int(item[0])))
        for name in sorted(readable)
    }


def parse_ptxas(text: str) -> list[tuple[str, str, Usage]]:
    """(symbol, compute capability, usage) of every kernel in what `ptxas -v` printed."""
    found: list[tuple[str, str, Usage]] = []
    for block in re.split(r"(?=Compiling entry function)", text)[1:]:
        entry, spills, used = _ENTRY.search(block), _SPILLS.search(block), _USED.search(block)
        if entry is None or spills is None or used is None:
            raise ValueError(f"not what ptxas -v prints: {block[:200]!r}")
        usage = Usage(
            registers=int(used[1]),
            shared_bytes=int(used[2] or 0),
            spill_bytes=int(spills[1]) + int(spills[2]),
        )
        found.append((entry[1], entry[2], usage))
    return found


def demangle(symbols: Sequence[str]) -> list[str]:
    """Names with template arguments, without namespaces and parameters."""
    result = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    )
    return [_short(line) for line in result.stdout.splitlines()]


def _short(signature: str) -> str:
    name = signature.replace("(anonymous namespace)::", "").replace("awq_edge::", "")
    depth = 0
    for index, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            name = name[:index]
            break
    return name.removeprefix("void ")


def as_json(tools: Toolchain, table: Table) -> str:
    """One line per kernel and compute capability, so that a change is a readable difference."""
    kernels = []
    for name, row in table.items():
        lines = ",\n".join(f"      {json.dumps(a)}: {json.dumps(u)}" for a, u in row.items())
        kernels.append(f"    {json.dumps(name)}: {{\n{lines}\n    }}")
    what = "registers, static shared memory and spills of each kernel, from ptxas -v"
    return (
        f'{{\n  "what": {json.dumps(what)},\n  "cuda": {json.dumps(tools.cuda_version)},\n'
        '  "kernels": {\n' + ",\n".join(kernels) + "\n  }\n}\n"
    )


def _digest(tools: Toolchain, targets: Sequence[int], options: Sequence[str]) -> str:
    """Of all that the result depends on: sources, compilers, and how they are called."""
    cxx = subprocess.run([tools.cxx, "--version"], capture_output=True, text=True, check=True)
    nvcc = subprocess.run([tools.nvcc, "--version"], capture_output=True, text=True, check=True)
    digest = hashlib.sha256(f"{tools.nvcc} {nvcc.stdout} {cxx.stdout} {targets} {options}".encode())
    for path in (LAUNCHER, Path(plugin_build.__file__)):
        digest.update(path.read_bytes())
    for path in sorted(SOURCES.rglob("*")):
        if path.is_file() and "tests" not in path.relative_to(SOURCES).parts:
            digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _progress_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
