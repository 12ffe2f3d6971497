"""AutoAWQ's `gemm` layout: 4 bits, one group size. Read by transformers and vLLM.

    NAME.qweight  int32   [in, out / 8]           4-bit codes
    NAME.qzeros   int32   [in / group, out / 8]   zero points, same order, no off-by-one
    NAME.scales   float16 [in / group, out]

Eight codes of neighbouring output channels share an int32: bits 4i..4i+3 of word c hold output
channel 8c + ORDER[i].

    bit   31..28 27..24 23..20 19..16 15..12 11..8  7..4   3..0
    8c +     7      5      3      1      6     4     2      0

Source: AutoAWQ's WQLinear_GEMM.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from awq_edge.artifacts.config_keys import ConfigKeys
from awq_edge.artifacts.input_files import show
from awq_edge.errors import ModelError
from awq_edge.model.layouts.base import (
    ANY_LINEAR,
    ONE_GROUP,
    Array,
    CheckpointFormats,
    Entries,
    Layout,
    Read,
    Shapes,
    StoredConfig,
    check_groups,
    is_group_size,
    matcher,
    quantization_keys,
)
from awq_edge.model.w4a16 import NumberFormat, Scheme, UInt8, check_codes

if TYPE_CHECKING:
    import torch

Int32 = npt.NDArray[np.int32]

BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
LANES = 8  # codes in an int32


class AwqGemm(Layout):
    """The layout; see the module."""

    name = "awq"
    quant_method = "awq"
    description = "awq (version gemm)"
    bits = (BITS,)
    mixed = False
    integers = {"qweight": ("I32",), "qzeros": ("I32",)}

    def obstacle(
        self, out_features: int, in_features: int, number_format: NumberFormat
    ) -> str | None:
        """Groups must fit in_features, words out_features."""
        if out_features % LANES:
            reason = f"out_features {out_features} is not a multiple of {LANES}"
        else:
            reason = None
        return check_groups(in_features, number_format.group_size) or reason

    def read_config(self, quantization: Mapping[str, Any], path: Path) -> StoredConfig:
        """The keys of AutoAWQ, llm-awq (w_bit, q_group_size) and AutoRound, which may have other
        groups for some linears; a key that is missing or null has transformers' default."""
        keys = quantization_keys(quantization, path)
        details = keys.table("awq_edge") or ConfigKeys({})
        # Other tools' count as asymmetric, whose arithmetic covers both.
        scheme: Scheme = "asymmetric"
        if (written := details.text("scheme", scheme)) != scheme:
            if written != "symmetric":
                raise details.refusal("scheme", "must be asymmetric or symmetric", written)
            scheme = "symmetric"
        targets = {ANY_LINEAR: _number_format(quantization, scheme, path)}
        others = keys.table("extra_config") or ConfigKeys({})
        for name in others.values:
            own = others.table(name) or ConfigKeys({})
            settings = {**quantization, **own.values}
            if _integer(settings, ("bits",), BITS, path) < _UNQUANTIZED:
                targets[_target(name, path)] = _number_format(settings, scheme, path)
        return StoredConfig(
            method=details.text("method", self.quant_method), targets=targets, strict=False
        )

    def make_config(self, formats: CheckpointFormats) -> dict[str, Any]:
        """zero_point is true for the symmetric scheme too (all zeros are 8): readers that take it
        for false expect another layout."""
        assert set(formats.quantized.values()) <= {formats.main}
        return {
            "quant_method": self.quant_method,
            "bits": formats.main.bits,
            "group_size": formats.main.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": [
                *(name for linear in formats.dense for name in formats.names(linear)),
                *formats.kept,
            ],
            "awq_edge": {"scheme": formats.main.scheme, "method": formats.method},
        }

    def is_stored(self, linear: str, entries: Entries) -> bool:
        return f"{linear}.qweight" in entries

    def shapes(
        self,
        linear: str,
        shape: tuple[int, int],
        number_format: NumberFormat,
        entries: Entries,
    ) -> Shapes:
        out_features, in_features = shape
        groups = in_features // number_format.group_size
        return {
            f"{linear}.qweight": (in_features, out_features // LANES),
            f"{linear}.qzeros": (groups, out_features // LANES),
            f"{linear}.scales": (groups, out_features),
        }

    def scales_name(self, linear: str) -> str:
        return f"{linear}.scales"

    def scales(self, linear: str, read: Read) -> Array:
        return read(f"{linear}.scales").T

    def stores_zeros(self, number_format: NumberFormat) -> bool:
        return True

    def zeros(self, linear: str, number_format: NumberFormat, read: Read) -> UInt8:
        return unpack_gemm(read(f"{linear}.qzeros"))

    def codes(self, linear: str, number_format: NumberFormat, read: Read) -> UInt8:
        return unpack_gemm(read(f"{linear}.qweight"))

    def pack(
        self,
        linear: str,
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor,
        number_format: NumberFormat,
    ) -> dict[str, torch.Tensor]:
        return {
            f"{linear}.qweight": _pack(codes),
            f"{linear}.qzeros": _pack(zeros),
            f"{linear}.scales": scales.T.contiguous(),
        }

    def nibbles(self, linear: str, number_format: NumberFormat, read: Read) -> Iterator[Array]:
        yield repack_gemm(read(f"{linear}.qweight"))


LAYOUT = AwqGemm()
_GROUP_SIZE = 128  # transformers' default
_UNQUANTIZED = 16


def _number_format(quantization: Mapping[str, Any], scheme: Scheme, path: Path) -> NumberFormat:
    """Bits and groups of a table of settings. Raises ModelError for what the layout has not."""
    bits = _integer(quantization, ("bits", "w_bit"), BITS, path)
    if bits != BITS:
        raise ModelError(f"{path}: quantization_config has bits {bits}; supported: {BITS}")
    group_size = _integer(quantization, ("group_size", "q_group_size"), _GROUP_SIZE, path)
    if not is_group_size(group_size) and group_size != ONE_GROUP:
        raise ModelError(
            f"{path}: quantization_config has group_size {group_size}; supported: a positive "
            "number, or -1 for one group a row"
        )
    return NumberFormat(BITS, group_size, scheme)


def _integer(
    quantization: Mapping[str, Any], keys: tuple[str, ...], default: int, path: Path
) -> int:
    """The first of the keys that is there and not null; digits in quotes count as a number."""
    for key in keys:
        value = quantization.get(key)
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,6}", value):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if value is not None:
            raise ModelError(
                f"{path}: quantization_config has {key} {show(value)}; must be an integer"
            )
    return default


def _target(name: str, path: Path) -> str:
    """A key of AutoRound's extra_config: a name, or a regular expression of one."""
    if re.fullmatch(r"[\w.]+", name):
        return name
    try:
        matcher(name)
    except ValueError as error:
        raise ModelError(
            f"{path}: quantization_config.extra_config has {show(name)}, which is no regular "
            f"expression that can be used ({error})"
        ) from None
    return f"re:{name}"


def pack_gemm(codes: UInt8) -> Int32:
    """Pack codes [out, columns] (columns: in, or in / group for zeros) to int32 [columns, out/8].

    The NumPy reference. Raises ValueError when out is no multiple of 8 or a code does not fit.
    """
    _check(codes.shape[0], int(codes.max()) if codes.size else 0)
    lanes = np.ascontiguousarray(codes.T).reshape(codes.shape[1], -1, LANES)
    # Nibbles in memory order make bytes, and four bytes a little-endian word.
    ordered = lanes[:, :, ORDER]
    packed = ordered[:, :, 0::2] | (ordered[:, :, 1::2] << 4)
    return np.ascontiguousarray(packed).view("<i4")[:, :, 0]


def unpack_gemm(packed: Int32) -> UInt8:
    """The inverse of `pack_gemm`: int32 [columns, out/8] to uint8 codes [out, columns]."""
    columns = packed.shape[0]
    pairs = np.ascontiguousarray(packed).view(np.uint8).reshape(columns, -1, 4)
    lanes = np.empty((columns, pairs.shape[1], LANES), dtype=np.uint8)
    lanes[:, :, ORDER[0::2]] = pairs & 15
    lanes[:, :, ORDER[1::2]] = pairs >> 4
    return np.ascontiguousarray(lanes.reshape(columns, -1).T)


def repack_gemm(qweight: Array) -> Array:
    """Words to rows of codes two to a byte, without unpacking to single codes.

    qweight: int32 [in, out / 8], in even. Returns uint8 [out, in / 2]: byte j of row n holds the
    codes of input channels 2j (low nibble) and 2j + 1.

    Two neighbouring input rows are joined nibble by nibble while they are still words, eight codes
    at a time; what is left is a transposition of bytes.

        word of row 2j        7 5 3 1 6 4 2 0      nibbles named by output channel
        word of row 2j + 1    7 5 3 1 6 4 2 0
        even nibbles     ->   5 5 1 1 4 4 0 0      bytes: channels 0, 4, 1, 5
        odd nibbles      ->   7 7 3 3 6 6 2 2      bytes: channels 2, 6, 3, 7
    """
    in_features, words = qweight.shape
    unsigned = np.ascontiguousarray(qweight).view(np.uint32)
    first, second = unsigned[0::2], unsigned[1::2]
    low, high = np.uint32(0x0F0F0F0F), np.uint32(0xF0F0F0F0)
    even = (first & low) | ((second & low) << np.uint32(4))
    odd = ((first >> np.uint32(4)) & low) | (second & high)
    packed = np.empty((words, 8, in_features // 2), np.uint8)
    for joined, channels in ((even, (0, 4, 1, 5)), (odd, (2, 6, 3, 7))):
        lanes = joined.astype("<u4", copy=False).view(np.uint8)
        lanes = lanes.reshape(in_features // 2, words, 4)
        for lane, channel in enumerate(channels):
            packed[:, channel] = lanes[:, :, lane].T
    return packed.reshape(words * 8, in_features // 2)


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """`pack_gemm` in torch, on the device of the codes."""
    import torch

    out_features, columns = codes.shape
    _check(out_features, int(codes.max()) if codes.numel() else 0)
    lanes = codes.reshape(-1, LANES, columns)
    words = torch.zeros(out_features // LANES, columns, dtype=torch.int32, device=codes.device)
    for place, channel in enumerate(ORDER):
        words |= lanes[:, channel].to(torch.int32) << (BITS * place)
    return words.T.contiguous()


def _check(out_features: int, largest: int) -> None:
    if out_features % LANES:
        raise ValueError(f"out_features {out_features} is not a multiple of {LANES}")
    check_codes(largest, BITS)
