"""The number format of `awq_edge.model.w4a16` in torch, on any device: equal bits, tested.

All shapes: weight float32 [out, in]; one scale, zero point and clip ratio per group of a row,
[out, in / group].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from awq_edge.errors import ModelError
from awq_edge.model.w4a16 import SMALLEST_SCALE, NumberFormat, NumberFormats
from awq_edge.quantizer.host_memory import row_pieces

__all__ = [
    "NumberFormat",
    "NumberFormats",
    "Rounded",
    "ScaleOverflow",
    "concatenate",
    "fake_quantize",
    "ranges",
    "require_representable",
    "round_to_nearest",
]


class ScaleOverflow(ValueError):
    """A group's range is so large that its scale does not fit float16."""


@dataclass(frozen=True)
class Rounded:
    """codes: uint8 [out, in]. scales: float16 [out, in / group]. zeros: uint8, like scales."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def split(self, rows: Sequence[int]) -> list[Rounded]:
        """Cut into linears of so many rows [out]."""
        parts = (torch.split(each, list(rows)) for each in (self.codes, self.scales, self.zeros))
        return [Rounded(*part) for part in zip(*parts, strict=True)]

    def dequantize(self) -> torch.Tensor:
        """The weight that the codes stand for: float32 [out, in]."""
        out_features = self.codes.shape[0]
        weight = self.codes.reshape(out_features, self.scales.shape[1], -1).float()
        weight.sub_(self.zeros.float()[:, :, None]).mul_(self.scales.float()[:, :, None])
        return weight.reshape(out_features, -1)

    def rows(self, rows: slice) -> Rounded:
        """The codes of some rows [out]."""
        return Rounded(self.codes[rows], self.scales[rows], self.zeros[rows])


def require_representable(
    model: str, name: str, weight: torch.Tensor, number_format: NumberFormat
) -> None:
    """Raise ModelError for a weight whose plain scales do not fit fp16; so that no search and no
    report meets one. weight: float32 [out, in]."""
    if _fits(weight, number_format):
        return
    largest = float(torch.stack([end.abs() for end in torch.aminmax(weight)]).max())
    other = [
        bits
        for bits in (3, 4, 8)
        if bits > number_format.bits and _fits(weight, replace(number_format, bits=bits))
    ]
    advice = f"give --bits {other[0]}, or" if other else "no number of bits here holds it:"
    raise ModelError(
        f"{model}: '{name}' has values up to {largest:.3g}, and the scale of a group with one "
        f"overflows fp16 (at most 65,504) in {number_format.bits} bits; {advice} look at the model "
        "where it comes from: such a weight is most often damage"
    )


def _fits(weight: torch.Tensor, number_format: NumberFormat) -> bool:
    """True where all plain scales fit fp16."""
    try:
        for rows in row_pieces(weight):
            ranges(weight[rows], number_format, None)
    except ScaleOverflow:
        return False
    return True


def round_to_nearest(
    weight: torch.Tensor, number_format: NumberFormat, ratio: torch.Tensor | None = None
) -> Rounded:
    """Round to nearest in groups whose range is first shrunk by `ratio`.

    weight: float32 [out, in]. ratio: float32 [out, in / group] in (0, 1], None for 1.
    Raises ScaleOverflow when a scale does not fit fp16.
    """
    pieces = [
        _round_to_nearest(weight[rows], number_format, None if ratio is None else ratio[rows])
        for rows in row_pieces(weight)
    ]
    return concatenate(pieces)


def concatenate(pieces: Sequence[Rounded]) -> Rounded:
    """The rows of all pieces, one below the other."""
    if len(pieces) == 1:
        return pieces[0]
    return Rounded(
        torch.cat([piece.codes for piece in pieces]),
        torch.cat([piece.scales for piece in pieces]),
        torch.cat([piece.zeros for piece in pieces]),
    )


def _round_to_nearest(
    weight: torch.Tensor, number_format: NumberFormat, ratio: torch.Tensor | None
) -> Rounded:
    groups, scales, zeros = ranges(weight, number_format, ratio)
    codes = (groups / scales.float()[:, :, None]).round_().add_(zeros[:, :, None])
    codes = codes.clamp_(0, 2**number_format.bits - 1).to(torch.uint8)
    return Rounded(codes.reshape(weight.shape), scales, zeros.to(torch.uint8))


def fake_quantize(
    weight: torch.Tensor, number_format: NumberFormat, ratio: torch.Tensor | None = None
) -> torch.Tensor:
    """round_to_nearest(...).dequantize(), without the codes: float32 [out, in]."""
    groups, scales, zeros = ranges(weight, number_format, ratio)
    steps = scales.float()[:, :, None]
    zeros = zeros[:, :, None]
    codes = (groups / steps).round_().add_(zeros).clamp_(0, 2**number_format.bits - 1)
    return codes.sub_(zeros).mul_(steps).reshape(weight.shape)


def ranges(
    weight: torch.Tensor, number_format: NumberFormat, ratio: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight in groups, with the scale and zero point of each.

    Returns float32 [out, in / group, group], float16 and float32 [out, in / group]. Raises
    ScaleOverflow when a scale does not fit fp16.
    """
    levels = 2**number_format.bits - 1
    groups = weight.reshape(weight.shape[0], -1, number_format.group_size)
    low = groups.amin(dim=2).clamp(max=0)
    high = groups.amax(dim=2).clamp(min=0)
    if ratio is not None:
        low, high = low * ratio, high * ratio
    if number_format.scheme == "symmetric":
        zero = 2 ** (number_format.bits - 1)
        span = torch.maximum(-low / zero, high / (levels - zero))
    else:
        span = (high - low) / levels
    scales = span.clamp(min=float(SMALLEST_SCALE)).half()
    if not torch.isfinite(scales).all():
        raise ScaleOverflow(f"a scale of {span.max().item():.3g} overflows fp16")
    if number_format.scheme == "symmetric":
        return groups, scales, torch.full_like(span, zero)
    return groups, scales, torch.round(-low / scales.float()).clamp(0, levels)
