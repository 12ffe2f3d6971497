"""Logits as NumPy arrays or as torch tensors: one definition of every measure for both.

A model on a GPU leaves its logits there: a window of a vocabulary of 262,144 words is 1 GB, which
copies and scores slower on the host than the GPU computes it. The functions that the measures call
have the same names and the same arguments in both libraries, `axis` and `keepdims` included, so
that `functions` is all that tells them apart.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Float32 = npt.NDArray[np.float32]
# float32 [rows, vocab]: in the host's memory, or on the device that computed it.
Logits: TypeAlias = Union[Float32, "torch.Tensor"]

# float64 values of one step. The host's fit the second-level cache of a core, a GPU's fill it.
_HOST_VALUES = 1 << 17
_GPU_VALUES = 1 << 24


def functions(array: Any) -> Any:
    """The library of an array, `numpy` or `torch`, for the functions that both have."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def to_float64(array: Any) -> Any:
    """A float32 array in float64, in the same library and on the same device."""
    xp = functions(array)
    return xp.asarray(array, dtype=xp.float64)


def to_host(array: Any) -> npt.NDArray[Any]:
    """An array in NumPy, copied from its device where it is on one."""
    return array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()


def in_one_library(first: Logits, second: Logits) -> tuple[Logits, Logits]:
    """Two arrays; where one alone is a torch tensor, the other is copied to its device."""
    if isinstance(first, np.ndarray) and not isinstance(second, np.ndarray):
        return second.new_tensor(first), second
    if isinstance(second, np.ndarray) and not isinstance(first, np.ndarray):
        return first, first.new_tensor(second)
    return first, second


def rows_at_a_time(logits: Logits) -> int:
    """The number of rows that are in float64 at a time, 1 or more."""
    values = _HOST_VALUES if isinstance(logits, np.ndarray) else _GPU_VALUES
    return max(values // logits.shape[1], 1)
