"""Memory that ran out: libraries' own exceptions, and the texts that they have been seen with."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest

from awq_edge.cli.ending import exit_code
from awq_edge.errors import ResourceError
from awq_edge.process.memory_errors import memory_error, memory_errors

_TOO_MUCH = 1 << 56  # bytes: beyond any address space


def _numpy() -> object:
    return np.empty(_TOO_MUCH, dtype=np.uint8)


def _torch() -> object:
    torch = pytest.importorskip("torch", reason="needs the [host] extra")
    return torch.empty(_TOO_MUCH, dtype=torch.uint8)


def _python() -> object:
    return bytes(_TOO_MUCH)


@pytest.mark.parametrize("allocate", [_numpy, _torch, _python])
def test_what_libraries_raise_on_this_machine(
    allocate: Callable[[], object], capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(ResourceError, match=r"^the memory ran out while it was tried.*; give less$"),
        memory_errors("it was tried", "give less"),
    ):
        allocate()
    try:
        allocate()
    except Exception as error:
        assert exit_code(error) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the memory ran out") and "close other programs" in line


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2 MiB. GPU 0 has a total capacity of 8 GiB.",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=x",
        "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY",
    ],
)
def test_texts_of_a_gpu(text: str) -> None:
    error = memory_error(RuntimeError(text))
    assert error is not None and str(error).startswith("the GPU's memory ran out (")
    assert "\n" not in str(error) and len(str(error)) < 300


@pytest.mark.parametrize("text", ["std::bad_alloc", "Failed to allocate memory for requested bu"])
def test_texts_of_the_machine(text: str) -> None:
    error = memory_error(RuntimeError(text))
    assert error is not None and str(error).startswith("the memory ran out (")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ValueError("shapes differ"),
        OSError(28, "No space left on device", "x"),
        ResourceError("the GPU's memory ran out: CUDA out of memory"),
    ],
)
def test_other_errors_pass(error: Exception) -> None:
    assert memory_error(error) is None
    with pytest.raises(type(error)) as caught, memory_errors("it was tried"):
        raise error
    assert caught.value is error
    assert sys.exc_info()[0] is None


def test_a_system_without_room_for_a_thread_is_no_defect(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """CPython raises a bare RuntimeError for it."""
    assert exit_code(RuntimeError("can't start new thread")) == 2
    assert "limit of processes" in capsys.readouterr().err
    assert exit_code(RuntimeError("can't start new threads here")) == 1
