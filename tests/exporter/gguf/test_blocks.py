"""Blocks against the gguf package's dequantization."""

from __future__ import annotations

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs the [gguf] extra")

from gguf import GGMLQuantizationType as GgufType  # noqa: E402
from gguf.quants import dequantize  # noqa: E402

from awq_edge.exporter.gguf.blocks import block_type, obstacle, pack  # noqa: E402
from awq_edge.model import w4a16  # noqa: E402
from awq_edge.model.w4a16 import NumberFormat  # noqa: E402

# Q4_1 stores -scale * zero in float16: 11 bits of a number of up to 15 steps.
OFFSET_ERROR = 15 * 2.0**-11  # steps
FORMATS = [
    NumberFormat(4, 32, "symmetric"),
    NumberFormat(4, 64, "symmetric"),
    NumberFormat(4, 128, "asymmetric"),
    NumberFormat(4, 32, "asymmetric"),
    NumberFormat(8, 64, "symmetric"),
]


def rounded(number_format: NumberFormat) -> w4a16.QuantizedWeight:
    weight = np.random.default_rng(0).normal(0, 0.03, (24, 256)).astype(np.float32)
    weight[3] *= 1000  # outliers
    weight[5] = 0
    weight[7] = np.abs(weight[7])  # zero point at an end
    return w4a16.quantize(
        weight, number_format.bits, number_format.group_size, number_format.scheme
    )


@pytest.mark.parametrize("number_format", FORMATS, ids=str)
def test_a_block_is_what_the_checkpoint_stands_for(number_format: NumberFormat) -> None:
    weight = rounded(number_format)
    gguf_type = block_type(number_format)
    assert gguf_type is not None
    found = dequantize(pack(weight, gguf_type), gguf_type)
    expected = w4a16.dequantize(weight)
    if number_format.scheme == "symmetric":
        np.testing.assert_array_equal(found, expected)
        return
    steps = np.repeat(weight.scales.astype(np.float32), number_format.group_size, axis=1)
    assert (np.abs(found - expected) <= OFFSET_ERROR * steps).all()
    assert (found != expected).any()  # so that the bound is one of something


def test_the_bytes_of_one_block() -> None:
    codes = np.arange(32, dtype=np.uint8)[None] % 16
    scales, zeros = np.array([[0.5]], np.float16), np.array([[3]], np.uint8)
    weight = w4a16.QuantizedWeight(codes, scales, zeros, 4)
    half, offset = b"\x00\x38", b"\x00\xbe"  # 0.5 and -1.5
    nibbles = bytes(code | code << 4 for code in range(16))
    assert pack(weight, GgufType.Q4_1).tobytes() == half + offset + nibbles
    assert pack(weight, GgufType.Q4_0).tobytes() == half + nibbles
    eight = w4a16.QuantizedWeight(codes + np.uint8(120), scales, zeros, 8)
    expected = bytes((int(code) + 120 - 128) % 256 for code in codes[0])
    assert pack(eight, GgufType.Q8_0).tobytes() == half + expected


@pytest.mark.parametrize(
    ("number_format", "reason"),
    [
        (NumberFormat(2, 64, "symmetric"), "no type of 2 bits"),
        (NumberFormat(3, 64, "asymmetric"), "no type of 3 bits"),
        (NumberFormat(8, 64, "asymmetric"), "no zero points; quantize with --scheme symmetric"),
        (NumberFormat(4, 16, "symmetric"), "one scale for 32 weights, and groups are of 16"),
    ],
    ids=str,
)
def test_a_format_that_gguf_lacks(number_format: NumberFormat, reason: str) -> None:
    assert block_type(number_format) is None
    assert reason in str(obstacle(number_format))


def test_every_format_with_a_type_has_no_obstacle() -> None:
    assert [obstacle(number_format) for number_format in FORMATS] == [None] * len(FORMATS)


@pytest.mark.parametrize("scale", [1e6, 1e-9])
def test_a_scale_that_float16_does_not_hold(scale: float) -> None:
    weight = w4a16.QuantizedWeight(
        np.zeros((1, 32), np.uint8), np.array([[scale]], np.float32), np.array([[8]], np.uint8), 4
    )
    with pytest.raises(ValueError, match="does not hold the value 1e"):
        pack(weight, GgufType.Q4_0)
