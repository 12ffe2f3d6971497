"""GPU tests run where torch sees a GPU that the kernel library has code for."""

from __future__ import annotations

import os
from typing import Any

import pytest

from awq_edge.kernels.kernels import (
    ENVIRONMENT_VARIABLE,
    KernelLibrary,
    candidates,
    load_kernels,
)
from tests.kernels.gpu.op_cases import DTYPES, Call


@pytest.fixture(scope="session")
def torch() -> Any:
    module = pytest.importorskip("torch", reason="needs torch")
    if not module.cuda.is_available():
        pytest.skip(reason="torch sees no CUDA device")
    return module


@pytest.fixture(scope="session")
def library(torch: Any) -> KernelLibrary:
    """A library that is there and does not fit is an error, not a reason to skip."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if not named and not any(file.is_file() for file in candidates()):
        pytest.skip(reason="no kernel library; build it with `awq-edge build-plugins`")
    return load_kernels()


@pytest.fixture(params=DTYPES)
def call(request: pytest.FixtureRequest, library: KernelLibrary, torch: Any) -> Call:
    return Call(library, torch, request.param)
