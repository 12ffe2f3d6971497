"""`awq-edge build-plugins`: the kernel library and the TensorRT plugin, built where they run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from awq_edge.artifacts.directories import atomic_directory
from awq_edge.artifacts.outputs import check_output
from awq_edge.artifacts.paths import user_path
from awq_edge.device.cuda_driver import compute_capabilities
from awq_edge.errors import ConfigError, RuntimeUnavailableError
from awq_edge.kernels.architectures import dotted, select_architectures
from awq_edge.kernels.header import sources_directory
from awq_edge.kernels.kernels import FILE_NAME, install_directory
from awq_edge.kernels.toolchain import Toolchain, find_toolchain
from awq_edge.process.children import child, scratch_directory

PLUGIN_FILE_NAME = "libawq_edge_plugin.so"
LOG_FILE_NAME = "build.log"
_NOT_BUILT = re.compile(rf"{re.escape(PLUGIN_FILE_NAME)}: (NOT BUILT: .*)")
# ninja's "[3/12] ..." and make's "[ 25%] ..."
_PROGRESS = re.compile(r"^\[\s*\d+(/\d+|%)\]")
_ERROR = re.compile(r"\berror\b\s*:|\bfatal error\b|^ptxas fatal|^nvcc fatal|undefined reference")
_CMAKE_ERROR = "CMake Error"


@dataclass(frozen=True)
class BuildResult:
    """The libraries as they were built.

    directory: the folder that has them now.
    plugin: None where `not_built` says why.
    """

    directory: Path
    kernels: Path
    plugin: Path | None
    not_built: str | None
    architectures: tuple[int, ...]
    cuda_version: str


def build_plugins(
    architectures: Sequence[str] = (),
    *,
    out: Path | None = None,
    jobs: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> BuildResult:
    """Build both libraries and put them where `load_kernels` looks first.

    architectures: compute capabilities ("8.7"); none: those of this machine's GPUs, or all that
    the kernels are tuned for.
    out: another folder.
    jobs: compilers at a time, by default one per CPU.
    progress: called with each line of the compilers' progress.

    Libraries that were there before are replaced when the build is done, not earlier. Raises
    RuntimeUnavailableError for missing tools and failing compilers, ConfigError for a GPU that the
    kernels or the toolkit do not know.
    """
    sources = sources_directory()
    _check_tensorrt()
    tools = find_toolchain()
    selected = select_architectures(
        architectures, compute_capabilities(), tools.known_architectures, tools.cuda_version
    )
    names = ", ".join(map(dotted, selected))
    progress(f"compiling for {names} with CUDA {tools.cuda_version} ({tools.nvcc})")
    final = out or install_directory()
    check_output(final, overwrite=True, inputs={"the sources": sources})
    with scratch_directory("build") as work:
        not_built = compile_libraries(
            tools, sources, work, selected, jobs=jobs, progress=progress, options=()
        )
        with atomic_directory(final, overwrite=True) as staged:
            for name in (FILE_NAME, PLUGIN_FILE_NAME, LOG_FILE_NAME):
                if (work / name).is_file():
                    shutil.copy2(work / name, staged / name)
    plugin = final / PLUGIN_FILE_NAME
    return BuildResult(
        directory=final,
        kernels=final / FILE_NAME,
        plugin=plugin if plugin.is_file() else None,
        not_built=not_built,
        architectures=selected,
        cuda_version=tools.cuda_version,
    )


def compile_libraries(
    tools: Toolchain,
    sources: Path,
    build: Path,
    architectures: Sequence[int],
    *,
    jobs: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
    options: Sequence[str] = (),
) -> str | None:
    """Run cmake and the compilers in `build`; their output is in its build.log.

    options: further arguments of cmake. Returns why the TensorRT plugin was not built, or None.
    Raises RuntimeUnavailableError with the first error of a compiler.
    """
    real = ";".join(f"{architecture}-real" for architecture in architectures)
    configure = [str(tools.cmake), "-S", str(sources), "-B", str(build)]
    configure += [*tools.cmake_arguments(), f"-DCMAKE_CUDA_ARCHITECTURES={real}"]
    configure += [f"-DPython3_EXECUTABLE={sys.executable}", *options]
    count = jobs or len(os.sched_getaffinity(0))
    compile_all = [str(tools.cmake), "--build", str(build), "--parallel", str(count)]
    build.mkdir(parents=True, exist_ok=True)
    output = ""
    for command in (configure, compile_all):
        code, text = _run(command, tools.environment(), progress)
        output += text
        (build / LOG_FILE_NAME).write_text(output, encoding="utf-8")
        if code != 0:
            raise RuntimeUnavailableError(_failure(text, command))
    match = _NOT_BUILT.search(output)
    return match[1] if match else None


def _check_tensorrt() -> None:
    """A folder that was named must have the headers; nothing else would tell that it has not."""
    named = os.environ.get("TENSORRT_INCLUDE_DIR")
    if named and not (user_path(named, "TENSORRT_INCLUDE_DIR") / "NvInfer.h").is_file():
        raise ConfigError(
            f"TENSORRT_INCLUDE_DIR={named} has no NvInfer.h; name the folder that has it, or unset "
            "it to build the kernels alone"
        )


def _run(
    command: list[str], environment: dict[str, str], progress: Callable[[str], None]
) -> tuple[int, str]:
    """Exit code and all output of a command, whose progress is passed on."""
    lines: list[str] = []
    pipe = subprocess.PIPE
    with child(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if _PROGRESS.match(line):
                progress(line.strip())
        return process.wait(), "".join(lines)


def _failure(text: str, command: list[str]) -> str:
    """The first error in a build's output, and the command to see it all."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for index, line in enumerate(lines):
        if line.startswith(_CMAKE_ERROR):
            # What went wrong is on the next line.
            return f"building the kernels failed: {' '.join(lines[index : index + 2])}"
        if _ERROR.search(line):
            return f"building the kernels failed: {line}"
    last = lines[-1] if lines else "no output"
    return f"building the kernels failed ({' '.join(command)}): {last}"
