"""The C++ plugin compiled for tests, and the kernel library under both plugins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import compilers

gcc, gxx = compilers.gcc, compilers.gxx


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
