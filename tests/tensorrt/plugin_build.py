"""The C++ plugin for tests: compiled by g++ against a kernel library that computes nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from awq_edge.kernels import interface
from awq_edge.tensorrt.cpp_tables import cpp_tables
from tests.compilers import PLUGINS

TESTS = Path(__file__).resolve().parent
RECORDED = (
    "awq_edge_w4a16_workspace",
    "awq_edge_w4a16_linear",
    "awq_edge_cached_attention_workspace",
    "awq_edge_cached_attention",
    "awq_edge_clear_counters",
    "awq_edge_copy",
)
_KERNELS = "librecording_kernels.so"


def tensorrt_headers() -> Path:
    """The folder of NvInferRuntime.h, or a skip that says why there is no C++ plugin."""
    named = os.environ.get("TENSORRT_INCLUDE_DIR")
    machine = os.uname().machine
    usual = (
        f"/usr/include/{machine}-linux-gnu",
        "/usr/local/tensorrt/include",
        "/opt/tensorrt/include",
    )
    for folder in map(Path, [named] if named else usual):
        if (folder / "NvInferRuntime.h").is_file():
            return folder
    where = f"TENSORRT_INCLUDE_DIR={named}" if named else " or ".join(usual)
    pytest.skip(
        reason=f"NOT BUILT: libawq_edge_plugin.so: no NvInferRuntime.h in {where}; it is in "
        "TensorRT's package and repository, set TENSORRT_INCLUDE_DIR"
    )


def tensorrt_major() -> int:
    """The first number of the headers' version."""
    text = (tensorrt_headers() / "NvInferVersion.h").read_text()
    match = re.search(r"define (?:TRT_MAJOR_ENTERPRISE|NV_TENSORRT_MAJOR) (\d+)", text)
    assert match is not None
    return int(match[1])


def cuda_headers() -> Path:
    """The folder of cuda_runtime_api.h, which TensorRT's headers include, or a skip."""
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"]
    for site in map(Path, sys.path):
        folders += sorted(site.glob("nvidia/*/include"))
    for folder in folders:
        if (folder / "cuda_runtime_api.h").is_file():
            return folder
    pytest.skip(
        reason="NOT BUILT: libawq_edge_plugin.so: no cuda_runtime_api.h in CUDA_HOME "
        "or nvidia's wheels"
    )


def build_recording_kernels(gcc: str, folder: Path) -> Path:
    """A library with every function of the header; those of the plugin write down their calls."""
    stubs = folder / "stubs.c"
    bodies = {
        "awq_edge_abi_version": f"int NAME(void) {{ return {interface.ABI_VERSION}; }}",
        "awq_edge_layout_version": f"int NAME(void) {{ return {interface.LAYOUT_VERSION}; }}",
        "awq_edge_status_message": 'const char* NAME(int s) { return s ? "refused" : "fine"; }',
        "awq_edge_last_error": 'const char* NAME(void) { return ""; }',
        "awq_edge_architectures": 'const char* NAME(void) { return "80,86,87,89,90,120"; }',
    }
    names = [name for name in (*interface.QUERIES, *interface.FUNCTIONS) if name not in RECORDED]
    stubs.write_text(
        "".join(
            bodies.get(name, "int NAME() { return 0; }").replace("NAME", name) + "\n"
            for name in names
        )
    )
    library = folder / _KERNELS
    _run(
        [gcc, "-shared", "-fPIC", f"-I{PLUGINS / 'include'}", f"-Wl,-soname,{_KERNELS}"],
        [stubs, TESTS / "recording.c", "-o", library],
    )
    return library


def build_plugin(gxx: str, kernels: Path, headers: Path, folder: Path) -> Path:
    """libawq_edge_plugin.so over `kernels`."""
    library = folder / "libawq_edge_plugin.so"
    tables = folder / "contract.cpp"
    tables.write_text(cpp_tables())
    exports = PLUGINS / "tensorrt" / "exports.map"
    _run(
        [*_compiler(gxx, headers), f"-I{PLUGINS / 'tensorrt'}", "-fvisibility=hidden", "-Werror"],
        [*sorted((PLUGINS / "tensorrt").glob("*.cpp")), tables, kernels, "-ldl", "-o", library],
        [f"-Wl,-rpath,{kernels.parent}", f"-Wl,--version-script={exports}"],
    )
    return library


def build_host(gxx: str, headers: Path, folder: Path) -> Path:
    library = folder / "plugin_host.so"
    _run(_compiler(gxx, headers), [TESTS / "plugin_host.cpp", "-ldl", "-o", library])
    return library


def _compiler(gxx: str, headers: Path) -> list[str]:
    return [
        *(gxx, "-std=c++17", "-O0", "-Wall", "-Wextra", "-shared", "-fPIC"),
        f"-I{PLUGINS / 'include'}",
        *("-isystem", str(headers), "-isystem", str(cuda_headers())),
    ]


def _run(*parts: Iterable[str | Path]) -> None:
    command = [str(word) for part in parts for word in part]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
