"""NF4, QLoRA's 4-bit format, as a point to compare with. No checkpoint here holds it.

Blocks of 64 consecutive weights of a row-major matrix share one float32 scale, their largest |w|.
A code names one of 16 levels in [-1, 1], the quantiles of a normal distribution: seven below 0, 0
itself, eight above, so that normally distributed weights use all codes alike.
Source: Dettmers et al. 2023 (arXiv 2305.14314), section 3 and appendix E; the two half ranges are
those of its released code, `create_normal_map`.
"""

from __future__ import annotations

import functools
from statistics import NormalDist

import torch

BLOCK = 64  # weights that share a scale
# Without QLoRA's second quantization (of the scales themselves: 4.127 bits), whose further error
# is small beside that of the codes.
BITS_PER_WEIGHT = 4 + 32 / BLOCK
# Weights at a time, by kind of device, multiples of BLOCK: 4 and 64 MB of float32 in a temporary.
_CHUNK_VALUES = {"cpu": 1 << 20, "cuda": 1 << 24}


@functools.cache
def nf4_levels() -> tuple[float, ...]:
    """The 16 levels in ascending order, from -1 to 1."""
    # The outermost quantile, midway between those of 15 and of 16 equal shares, which keeps it
    # finite and both ends alike.
    outermost = 1 - (1 / 30 + 1 / 32) / 2

    def half(count: int) -> list[float]:
        """`count` positive quantiles, the largest first, evenly spaced in probability."""
        step = (outermost - 0.5) / count
        return [NormalDist().inv_cdf(outermost - index * step) for index in range(count)]

    levels = sorted([*half(8), 0.0, *(-level for level in half(7))])
    return tuple(level / levels[-1] for level in levels)


def nf4_fake_quantize(weight: torch.Tensor) -> torch.Tensor:
    """The weight that its NF4 codes stand for: float32, of the same shape.

    weight: float32 [out, in]. A last block that is not full has the scale of what is there.
    """
    parts = torch.split(weight.reshape(-1), _CHUNK_VALUES[weight.device.type])
    return torch.cat([_fake_quantize(part) for part in parts]).view_as(weight)


def _fake_quantize(flat: torch.Tensor) -> torch.Tensor:
    levels = torch.tensor(nf4_levels(), device=flat.device)
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True)
    # An all-zero block divides by 1 and stays zero.
    relative = blocks / torch.where(scales > 0, scales, torch.ones_like(scales))
    midpoints = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(relative, midpoints, out_int32=True)
    return (levels[codes] * scales).reshape(-1)[: len(flat)]
