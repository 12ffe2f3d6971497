"""awq_edge_sample in NumPy: the same numbers, in the order of the specification.

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


@dataclass(frozen=True)
class Adjustments:
    """What changes the logits [vocab] of a row.

    counts: 1 where a token is in the prompt, plus 2 for each time it was drawn.
    mask: True where a token is allowed.
    """

    counts: npt.NDArray[Any] | None = None
    bias: npt.NDArray[np.float32] | None = None
    mask: npt.NDArray[np.bool_] | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


def philox_4x32_10(counter: tuple[int, int, int, int], key: int) -> tuple[int, ...]:
    """Four 32-bit words (Salmon et al., SC 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK, key >> 32 & _MASK
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 & _MASK, p0 >> 32 ^ c3 ^ k1, p0 & _MASK
        k0, k1 = k0 + 0x9E3779B9 & _MASK, k1 + 0xBB67AE85 & _MASK
    return c0, c1, c2, c3


def random_bits(seed: int, step: int, sequence: int) -> int:
    """64 bits for one sequence of one step."""
    words = philox_4x32_10((step & _MASK, step >> 32 & _MASK, sequence & _MASK, 0), seed)
    return words[1] << 32 | words[0]


def adjusted(logits: npt.NDArray[Any], by: Adjustments) -> npt.NDArray[np.float32]:
    """float32 [vocab] after penalties, bias and mask."""
    values = np.asarray(logits, np.float32).copy()
    if by.counts is not None:
        penalty = np.float32(by.repetition_penalty)
        inverse = np.float32(1) / penalty
        factors = np.where(values > 0, inverse, penalty)
        values = np.where(by.counts != 0, values * factors, values)
        drawn = np.asarray(by.counts) >> 1
        lower = values - drawn.astype(np.float32) * np.float32(by.frequency_penalty)
        lower = lower - np.float32(by.presence_penalty)
        values = np.where(drawn > 0, lower, values)
    if by.bias is not None:
        values = values + by.bias
    return values if by.mask is None else np.where(by.mask, values, np.float32(-np.inf))


def differences(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """From the largest, which has 0; NaN stays, and is the largest where all are."""
    nothing = bool(np.isnan(values).all())
    largest = np.float32(np.nan) if nothing else np.nanmax(values)
    with np.errstate(all="ignore"):
        below = (values - largest).astype(np.float16)
    return np.where(values == largest, np.float16(0), below)


def weights(difference: npt.NDArray[np.float16], temperature: float) -> npt.NDArray[np.uint64]:
    """Integer weights; the largest has 2^44."""
    values = difference.astype(np.float32)
    nothing = bool(np.isnan(values).all())
    with np.errstate(all="ignore"):
        # The library takes the temperature as float32 and divides in float64.
        scale = np.float32(1.4426950408889634 / np.float64(np.float32(temperature)))
        x = values * scale
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
    full = np.isnan(values) if nothing else values == 0
    return np.where(full, np.uint64(1 << WEIGHT_BITS), result)


def order(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Ids, the largest value first; equal ones by id; NaN last."""
    exact = np.asarray(values, dtype=np.float64)
    return np.lexsort((np.arange(exact.size), -exact, np.isnan(exact)))


def sample(
    logits: npt.NDArray[Any],
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    step: int = 0,
    sequence: int = 0,
    adjustments: Adjustments | None = None,
) -> Draw:
    """The token of one row of logits [vocab], float32 values that 16 bits hold exactly."""
    values = np.asarray(logits, np.float32)
    if adjustments is not None:
        values = adjusted(values, adjustments)
    if not temperature > 0:
        return Draw(int(order(values)[0]), 1)
    difference = differences(values)
    ids = order(difference)
    if top_k > 0:
        ids = ids[:top_k]
    shares = weights(difference, temperature)[ids]
    through = np.cumsum(shares)  # below 2^63
    fixed = int(np.float64(np.float32(top_p)) * 2.0**32)
    threshold = max(1, int(through[-1]) * fixed >> 32)
    kept = int(np.argmax(through >= threshold)) + 1
    below = shares < int(np.float64(np.float32(min_p)) * 2.0**WEIGHT_BITS)
    if below.any():
        kept = min(kept, int(np.argmax(below)))
    target = int(through[kept - 1]) * random_bits(seed, step, sequence) >> 64
    return Draw(int(ids[np.argmax(through > target)]), kept)
