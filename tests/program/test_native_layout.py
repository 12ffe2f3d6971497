"""Weights of TensorRT's DequantizeLinear, against codes one by one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from awq_edge.errors import ModelError
from awq_edge.model import w4a16
from awq_edge.program.native_layout import transposed_codes
from awq_edge.program.sources import QuantizedWeights
from awq_edge.program.weights import Weight, of_array, pack_nibbles


def codes_and_scales(weight: w4a16.QuantizedWeight) -> QuantizedWeights:
    if weight.bits == 8:
        codes = of_array("x.weight", weight.codes, "uint8", "blocks")
    else:
        packed = pack_nibbles(weight.codes.reshape(-1))
        codes = Weight("x.weight", "uint4", weight.codes.shape, "blocks", lambda: iter([packed]))
    scales = of_array("x.scales", weight.scales, "float16", "blocks")
    return QuantizedWeights(codes, scales, None)


@pytest.mark.parametrize("block", [1, 60, 1 << 20])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_transposed_codes(bits: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An odd number of rows, and blocks and pieces of few channels: nibbles of two rows share a
    byte."""
    monkeypatch.setattr("awq_edge.program.native_layout._BLOCK_BYTES", block)
    monkeypatch.setattr("awq_edge.program.native_layout._PIECE_BYTES", block // 2)
    rng = np.random.default_rng(0)
    parts = [w4a16.quantize(rng.standard_normal((n, 64)), bits, 32, "symmetric") for n in (5, 8)]
    found = transposed_codes("x", tuple(map(codes_and_scales, parts)), bits)
    assert (found.dtype, found.shape) == ("int8" if bits == 8 else "int4", (64, 13))
    expected = np.concatenate([part.codes for part in parts]).T.astype(int) - 2 ** (bits - 1)
    raw = found.array()
    if bits == 8:
        np.testing.assert_array_equal(raw.view(np.int8).reshape(64, 13), expected)
        return
    proto = onnx.TensorProto(data_type=onnx.TensorProto.INT4, dims=(64, 13), raw_data=raw.tobytes())
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(proto).astype(int), expected)


def test_zero_points_that_a_symmetric_checkpoint_must_not_have() -> None:
    weight = w4a16.quantize(np.random.default_rng(0).standard_normal((8, 64)), 4, 32, "symmetric")
    codes, scales, _ = codes_and_scales(weight)
    zeros = np.full((8, 2), 8, np.uint8)
    zeros[3, 1] = 7
    parts = [QuantizedWeights(codes, scales, of_array("x.zeros", zeros, "uint8", "blocks"))]
    with pytest.raises(ModelError, match=r"x\.weight: has zero points other than 8.*plugin"):
        transposed_codes("x", parts, 4).array()
