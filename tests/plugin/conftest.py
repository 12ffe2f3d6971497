"""Fixtures of the kernel tests: the header, and a C compiler where there is one."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
HEADER = PLUGINS / "include" / "awq_edge_kernels.h"


def _compiler(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(reason=f"needs {name}")
    return found


@pytest.fixture(scope="session")
def gcc() -> str:
    return _compiler("gcc")


@pytest.fixture(scope="session")
def gxx() -> str:
    return _compiler("g++")


@dataclass(frozen=True)
class CppPlugin:
    """The compiled plugin, the host that drives it, and the kernel library under both plugins."""

    library: Path
    host: Path


@pytest.fixture(scope="session")
def recording_kernels(gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel library that writes down its calls."""
    from .plugin_build import build_recording_kernels

    return build_recording_kernels(gcc, tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def cpp_plugin(
    gxx: str, recording_kernels: Path, tmp_path_factory: pytest.TempPathFactory
) -> CppPlugin:
    from .plugin_build import build_host, build_plugin, tensorrt_headers

    headers, folder = tensorrt_headers(), tmp_path_factory.mktemp("plugin")
    library = build_plugin(gxx, recording_kernels, headers, folder)
    return CppPlugin(library, build_host(gxx, headers, folder))
