"""A W4A16 product in Triton, to compare with: 4 bits, groups of 128, float16, asymmetric.

What a practised Triton user writes: codes along K in int32 words, dequantized in registers, one
tl.dot per group, block sizes tried out by Triton's autotuner. No layout prepared for the
instruction, and no split of K.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

GROUP_SIZE = 128


@triton.autotune(
    configs=[
        triton.Config({"block_n": n}, num_warps=warps, num_stages=stages)
        for n, warps, stages in ((16, 2, 4), (32, 4, 4), (64, 4, 3), (128, 8, 3))
    ],
    key=["m_bucket", "n", "k"],
)
@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    x, qweight, scales, zeros, y, m, n, k, m_bucket, block_m: tl.constexpr, block_n: tl.constexpr
):
    """x [m, k], qweight int32 [k / 8, n] (code i of a word: channel 8 row + i), scales and zeros
    float16 [k / 128, n], y [m, n]."""
    rows = tl.program_id(1) * block_m + tl.arange(0, block_m)
    columns = tl.program_id(0) * block_n + tl.arange(0, block_n)
    channels = tl.arange(0, 128)
    shifts = (tl.arange(0, 8) * 4)[None, :, None]
    sums = tl.zeros((block_m, block_n), dtype=tl.float32)
    for group in range(k // 128):
        words = tl.load(
            qweight + (group * 16 + tl.arange(0, 16))[:, None] * n + columns[None, :],
            mask=columns[None, :] < n,
            other=0,
        )
        codes = tl.reshape((words[:, None, :] >> shifts) & 0xF, (128, block_n)).to(tl.float16)
        scale = tl.load(scales + group * n + columns, mask=columns < n, other=0.0)
        zero = tl.load(zeros + group * n + columns, mask=columns < n, other=0.0)
        weight = (codes - zero[None, :]) * scale[None, :]
        part = tl.load(
            x + rows[:, None] * k + group * 128 + channels[None, :],
            mask=rows[:, None] < m,
            other=0.0,
        )
        sums = tl.dot(part, weight, sums)
    tl.store(
        y + rows[:, None] * n + columns[None, :],
        sums.to(tl.float16),
        mask=(rows[:, None] < m) & (columns[None, :] < n),
    )


class TritonLinear:
    """Random codes, scales and zero points of a linear [n, k], float16 on the device."""

    def __init__(self, n: int, k: int) -> None:
        groups = k // GROUP_SIZE
        self.n, self.k = n, k
        self.qweight = torch.randint(-(2**31), 2**31, (k // 8, n), dtype=torch.int32, device="cuda")
        self.scales = (torch.rand(groups, n, device="cuda") / 16 / k**0.5).half()
        self.zeros = torch.randint(0, 16, (groups, n), device="cuda").half()

    def __call__(self, x: Any, y: Any) -> None:
        """y [m, n] = x [m, k] W^T."""
        m = len(x)
        block_m = 16 if m <= 16 else 32 if m <= 32 else 64

        def grid(meta: dict[str, Any]) -> tuple[int, int]:
            return triton.cdiv(self.n, meta["block_n"]), triton.cdiv(m, block_m)

        _kernel[grid](
            x,
            self.qweight,
            self.scales,
            self.zeros,
            y,
            m,
            self.n,
            self.k,
            block_m,
            block_m=block_m,
        )

    def weight(self) -> Any:
        """float64 [n, k]."""
        shifts = torch.arange(0, 32, 4, device="cuda", dtype=torch.int32)
        codes = (self.qweight[:, None, :] >> shifts[None, :, None]) & 15
        codes = codes.reshape(self.k, self.n).double()
        zeros, scales = (
            t.double().repeat_interleave(GROUP_SIZE, 0) for t in (self.zeros, self.scales)
        )
        return ((codes - zeros) * scales).T
