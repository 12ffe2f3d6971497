"""Keeping memory small on a CPU, where weights and temporaries are the host's."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

import torch

# Rows of a weight at a time. Fewer would slow the product with G, which is read once for each
# piece. A multiple of 64, so that a piece is whole blocks of `awq_edge.quantizer.search.nf4`.
PIECE_ROWS = 512
_PIECE_COLUMNS = 512


def row_pieces(weight: torch.Tensor) -> list[slice]:
    """The slices of rows that cover a weight [out, in].

    The rows of a linear do not depend on each other where it is rounded or its errors are counted:
    temporaries need not grow with it. On a GPU all at once: more launches would cost time.
    """
    rows = PIECE_ROWS if weight.device.type == "cpu" else max(len(weight), 1)
    return [slice(begin, begin + rows) for begin in range(0, max(len(weight), 1), rows)]


def column_pieces(weight: torch.Tensor, group_size: int) -> list[slice]:
    """The slices of whole groups of columns that cover a weight [out, in], see `row_pieces`."""
    count = columns = weight.shape[1]
    if weight.device.type == "cpu":
        columns = group_size * max(1, _PIECE_COLUMNS // group_size)
    return [slice(begin, begin + columns) for begin in range(0, count, columns)]


def return_free_memory() -> None:
    """Give the system what was freed. glibc keeps freed tensors of up to 32 MB, in pieces between
    others, and their sum can be several times what is in use."""
    if (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's function, None where there is another C library."""
    if not sys.platform.startswith("linux"):
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim
