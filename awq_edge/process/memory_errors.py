"""Memory that ran out, of the machine or of a GPU: one error, whichever library says it.

Python, NumPy and PyCUDA have classes of their own for it, torch one for GPUs alone; onnxruntime,
torch on the CPU and CUDA's libraries say it in the text of exceptions that mean anything else too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from awq_edge.errors import AwqEdgeError, ResourceError

_OF_GPU = re.compile(
    r"CUDA[^\n]*out of memory|CU\w+_STATUS_ALLOC_FAILED|CUDA_ERROR_OUT_OF_MEMORY"
    r"|cudaErrorMemoryAllocation",
    re.IGNORECASE,
)
_OF_MACHINE = re.compile(r"bad_alloc|Failed to allocate memory|DefaultCPUAllocator")
_LONGEST = 200  # characters of a library's reason
_GPU_REMEDY = "close other programs that use it, or choose a smaller --context or model"
# Where the activations of a prefill are what is too large.
SMALLER_ACTIVATIONS = "choose a smaller --context, or export with a smaller prefill_chunk"
_MACHINE_REMEDY = "close other programs, or choose a smaller --context or model"


def gpu_memory_error(reason: str, when: str = "", remedy: str = _GPU_REMEDY) -> ResourceError:
    """The error of a GPU's memory. reason: the library's. when: names the work, "it was loaded"."""
    return _error("the GPU's memory ran out", reason, when, remedy)


def memory_error(
    error: BaseException, when: str = "", remedy: str | None = None
) -> ResourceError | None:
    """The error where an exception says that memory ran out, None where it says something else.

    when: names the work. remedy: in the place of the general one.
    """
    if isinstance(error, (AwqEdgeError, OSError)):
        return None
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or _OF_GPU.search(text):  # the class is torch's
        return gpu_memory_error(text, when, remedy or _GPU_REMEDY)
    if isinstance(error, MemoryError) or _OF_MACHINE.search(text):
        return _error("the memory ran out", text, when, remedy or _MACHINE_REMEDY)
    return None


@contextlib.contextmanager
def memory_errors(when: str, remedy: str | None = None) -> Iterator[None]:
    """Inside, exceptions of memory that ran out become ResourceError; others pass."""
    try:
        yield
    except Exception as error:
        translated = memory_error(error, when, remedy)
        if translated is None:
            raise
        raise translated from None


def _error(what: str, reason: str, when: str, remedy: str) -> ResourceError:
    first = re.split(r"\. |\n", reason.strip(), maxsplit=1)[0][:_LONGEST]
    work = f" while {when}" if when else ""
    return ResourceError(f"{what}{work}{f' ({first})' if first else ''}; {remedy}")
