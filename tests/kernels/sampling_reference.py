"""awq_edge_sample in NumPy: the same integers, in the order of the specification.

The specification is plugins/kernels/sampling_math.h; this is its second implementation, written
over sorted arrays where the kernels use counts per key, so that the two share no shortcut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

WEIGHT_BITS = 44
_MASK = (1 << 32) - 1

# 2^f on [0, 1): the coefficients of sampling_math.h, highest power first.
_EXP2 = tuple(
    np.float32(float.fromhex(text))
    for text in (
        "0x1.b4d1dep-13",
        "0x1.4ca4cep-10",
        "0x1.3c4a8ap-7",
        "0x1.c69f6ap-5",
        "0x1.ebfc40p-3",
        "0x1.62e430p-1",
    )
)


@dataclass(frozen=True)
class Draw:
    """token: the id. kept: how many tokens were drawn from, in the order of their logits."""

    token: int
    kept: int


def philox_4x32_10(counter: tuple[int, int, int, int], key: int) -> tuple[int, ...]:
    """Four 32-bit words (Salmon et al., SC 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK, key >> 32 & _MASK
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 & _MASK, p0 >> 32 ^ c3 ^ k1, p0 & _MASK
        k0, k1 = k0 + 0x9E3779B9 & _MASK, k1 + 0xBB67AE85 & _MASK
    return c0, c1, c2, c3


def random_bits(seed: int, step: int, row: int) -> int:
    """64 bits for one row of one step."""
    words = philox_4x32_10((step & _MASK, step >> 32 & _MASK, row, 0), seed)
    return words[1] << 32 | words[0]


def weights(logits: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.uint64]:
    """Integer weights of logits (exact values of 16-bit floats), the largest has 2^44."""
    values = np.asarray(logits, dtype=np.float32)
    nothing = bool(np.isnan(values).all())
    maximum = np.float32(-np.inf) if nothing else np.nanmax(values)
    with np.errstate(all="ignore"):
        # The library takes the temperature as float32 and divides in float64.
        scale = np.float32(1.4426950408889634 / np.float64(np.float32(temperature)))
        x = (values - maximum).astype(np.float32) * scale
        in_range = x >= -WEIGHT_BITS
        x = np.where(in_range, x, np.float32(0))
        whole = np.floor(x)
        fraction = (x - whole).astype(np.float32)
        power = np.full_like(fraction, _EXP2[0])
        for coefficient in _EXP2[1:]:
            power = (power * fraction).astype(np.float32) + coefficient
        power = (power * fraction).astype(np.float32) + np.float32(1)
        mantissa = (power * np.float32(2**23)).astype(np.uint64)
    shift = WEIGHT_BITS - 23 + whole.astype(np.int64)
    left, right = np.maximum(shift, 0).astype(np.uint64), np.maximum(-shift, 0).astype(np.uint64)
    result = np.where(in_range, mantissa << left >> right, np.uint64(0))
    full = np.isnan(values) if nothing else values == maximum
    return np.where(full, np.uint64(1 << WEIGHT_BITS), result)


def order(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Ids, the largest logit first; equal ones by id; NaN last."""
    values = np.asarray(logits, dtype=np.float64)
    return np.lexsort((np.arange(values.size), -values, np.isnan(values)))


def sample(
    logits: npt.NDArray[Any],
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    step: int = 0,
    row: int = 0,
) -> Draw:
    """The token of one row of logits [vocab], float32 values that 16 bits hold exactly."""
    ids = order(logits)
    if temperature == 0:
        return Draw(int(ids[0]), 1)
    if top_k > 0:
        ids = ids[:top_k]
    through = np.cumsum(weights(logits, temperature)[ids])  # below 2^63
    fixed = int(np.float64(np.float32(top_p)) * 2.0**32)
    threshold = max(1, int(through[-1]) * fixed >> 32)
    kept = int(np.argmax(through >= threshold)) + 1
    target = int(through[kept - 1]) * random_bits(seed, step, row) >> 64
    return Draw(int(ids[np.argmax(through > target)]), kept)
