"""The contract refuses what it should, in words with numbers; its tables in C++."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awq_edge.errors import ConfigError
from awq_edge.kernels import interface
from awq_edge.kernels.packing import pack
from awq_edge.model.w4a16 import QuantizedWeight
from awq_edge.tensorrt.contract import CACHED_ATTENTION, W4A16_LINEAR
from awq_edge.tensorrt.cpp_tables import cpp_expression
from awq_edge.tensorrt.op_contract import Number, Op, describe

ROOT = Path(__file__).resolve().parents[2]

LINEAR: dict[str, Number] = {
    "bits": 4,
    "group_size": 64,
    "in_features": 192,
    "out_features": 40,
    "layout_version": interface.LAYOUT_VERSION,
}
ATTENTION: dict[str, Number] = {
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_size": 64,
    "rotary_size": 32,
    "scale": 0.125,
}


def test_defaults_are_filled_in() -> None:
    values = CACHED_ATTENTION.read(ATTENTION)
    assert list(values) == [attribute.name for attribute in CACHED_ATTENTION.attributes]
    assert values["window"] == 0 and values["int8_cache"] == 0
    assert values["norm_eps"] == pytest.approx(1e-6)
    assert describe(W4A16_LINEAR.read(LINEAR)).startswith("bits=4, group_size=64, in_features=192")


@pytest.mark.parametrize(
    ("op", "attributes", "message"),
    [
        (W4A16_LINEAR, {"bits": 5}, "W4A16Linear: bits is 5, must be 3, 4 or 8"),
        (W4A16_LINEAR, {"bits": None}, "W4A16Linear: the attribute bits is missing"),
        (W4A16_LINEAR, {"group_size": 16}, "group_size is 16, must be 32, 64 or 128"),
        (W4A16_LINEAR, {"in_features": 100}, "in_features is 100, must be a multiple of .* 64"),
        (W4A16_LINEAR, {"out_features": 0}, "out_features is 0, must be at least 1"),
        (W4A16_LINEAR, {"layout_version": 0}, "layout_version is 0, must be 1"),
        (W4A16_LINEAR, {"has_zeros": 2}, "has_zeros is 2, must be 0 or 1"),
        (W4A16_LINEAR, {"out_features": 41, "epilogue": 1}, "is 41, must be even for epilogue 1"),
        (W4A16_LINEAR, {"groups": 1}, "no attribute groups; there are bits, group_size"),
        (CACHED_ATTENTION, {"head_size": 48}, "head_size is 48, must be 32, 64, 96, 128 or 256"),
        (CACHED_ATTENTION, {"num_heads": 5}, "is 5, must be a multiple of num_kv_heads 2"),
        (CACHED_ATTENTION, {"rotary_size": 65}, "is 65, must be even and at most head_size 64"),
        (CACHED_ATTENTION, {"rotary_size": 66}, "is 66, must be even and at most head_size 64"),
        (CACHED_ATTENTION, {"window": -1}, "window is -1, must be at least 0"),
        (CACHED_ATTENTION, {"scale": 0.0}, "scale is 0, must be at least 9.536743e-07"),
        (CACHED_ATTENTION, {"soft_cap": 1e7}, r"soft_cap is 1e\+07, must be at most 1000000"),
    ],
)
def test_attributes_are_refused_with_the_numbers(
    op: Op, attributes: dict[str, Any], message: str
) -> None:
    given = {**(LINEAR if op is W4A16_LINEAR else ATTENTION), **attributes}
    with pytest.raises(ConfigError, match=message):
        op.read({name: value for name, value in given.items() if value is not None})


def test_shapes_of_a_linear() -> None:
    values = W4A16_LINEAR.read({**LINEAR, "has_zeros": 1, "has_bias": 1})
    good = [[2, -1, 192], [3, 2, 256], [3, 4, 8, 2], [3, 4, 2], [40]]
    assert W4A16_LINEAR.check_shapes(values, good)["y_features"] == 40
    assert W4A16_LINEAR.check_shapes(values, [[192], *good[1:]])["tiles"] == 3
    for index, wrong, message in (
        (0, [2, 3, 128], r"x is \[2, 3, 128\], must be \[..., 192\] = \[..., in_features\]"),
        (0, [], r"x is \[\], must be"),
        (1, [3, 2, 192], r"qweight is \[3, 2, 192\], must be \[3, 2, 256\] = \[tiles, blocks"),
        (2, [3, 4, 4, 4], r"scales is \[3, 4, 4, 4\], must be \[3, 4, 8, 2\]"),
        (2, [3, 4, 16], r"scales is \[3, 4, 16\], must be \[3, 4, 8, 2\]"),
        (3, [3, 4, 4], r"zeros is \[3, 4, 4\], must be \[3, 4, 2\]"),
        (4, [48], r"bias is \[48\], must be \[40\] = \[out_features\] for bits=4, group_size=64"),
    ):
        shapes = [wrong if at == index else shape for at, shape in enumerate(good)]
        with pytest.raises(ConfigError, match=message):
            W4A16_LINEAR.check_shapes(values, shapes)
    with pytest.raises(ConfigError, match=r"4 inputs, must be 5 \(x, qweight, scales, zeros, bias"):
        W4A16_LINEAR.check_shapes(values, good[:4])


def test_shapes_of_attention_agree_with_each_other() -> None:
    values = CACHED_ATTENTION.read({**ATTENTION, "merged_qkv": 1, "int8_cache": 1})
    cache, scales = [2, 2, 256, 64], [2, 2, 256]
    good = [[2, -1, 512], [2], [512, 16], [512, 16], cache, cache, scales, scales]
    known = CACHED_ATTENTION.check_shapes(values, good)
    assert (known["batch"], known["context"], known["positions"]) == (2, 256, 512)
    for index, wrong, message in (
        (1, [3], r"past_length is \[3\], must be \[2\] = \[batch\]"),
        (3, [500, 16], r"sine is \[500, 16\], must be \[512, 16\]"),
        (5, [2, 2, 128, 64], r"past_value is \[2, 2, 128, 64\], must be \[2, 2, 256, 64\]"),
        (7, [2, 2, 255], r"past_value_scales is \[2, 2, 255\], must be \[2, 2, 256\]"),
    ):
        shapes = [wrong if at == index else shape for at, shape in enumerate(good)]
        with pytest.raises(ConfigError, match=message):
            CACHED_ATTENTION.check_shapes(values, shapes)
    short = [*good[:2], [128, 16], [128, 16], *good[4:]]
    with pytest.raises(ConfigError, match=r"positions is 128, must be at least context, .* 256"):
        CACHED_ATTENTION.check_shapes(values, short)


def test_dtypes_go_together() -> None:
    values = W4A16_LINEAR.read({**LINEAR, "has_bias": 1})
    for activations in ("float16", "bfloat16"):
        W4A16_LINEAR.check_dtypes(values, [activations, "int32", "float16", activations])
    for dtypes, message in (
        (["float32", "int32", "float16", "float32"], "x is float32, must be float16 or bfloat16"),
        (["float16", "uint8", "float16", "float16"], "qweight is uint8, must be int32"),
        (["bfloat16", "int32", "bfloat16", "bfloat16"], "scales is bfloat16, must be float16"),
        (["bfloat16", "int32", "float16", "float16"], "bias is float16, must be bfloat16"),
    ):
        with pytest.raises(ConfigError, match=message):
            W4A16_LINEAR.check_dtypes(values, dtypes)
    int8 = CACHED_ATTENTION.read({**ATTENTION, "merged_qkv": 1, "rotary_size": 0, "int8_cache": 1})
    names = ["float16", "int64", "float16", "float16", "float32", "float32"]
    with pytest.raises(ConfigError, match="past_key is float16, must be int8"):
        CACHED_ATTENTION.check_dtypes(int8, names)


def test_the_tables_in_cpp_are_the_same_every_time() -> None:
    """Whatever the order of sets and the working directory."""
    script = "from awq_edge.tensorrt.cpp_tables import cpp_tables; print(cpp_tables())"
    texts = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    "expression",
    ["a ** 2", "a / b", "a < b < c", "f(a)", "'a'", "1.5", "-a", "a if b", "True"],
)
def test_an_expression_that_cpp_reads_otherwise_is_refused(expression: str) -> None:
    with pytest.raises((ValueError, SyntaxError)):
        cpp_expression(expression)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("has_zeros", [0, 1])
def test_a_packed_weight_has_the_shapes_of_the_contract(
    bits: int, group_size: int, has_zeros: int
) -> None:
    rows, channels = 40, 384
    groups = (rows, channels // group_size)
    packed = pack(
        QuantizedWeight(
            codes=np.zeros((rows, channels), np.uint8),
            scales=np.ones(groups, np.float16),
            zeros=np.full(groups, 0 if has_zeros else 2 ** (bits - 1), np.uint8),
            bits=bits,
        )
    )
    values = W4A16_LINEAR.read(
        {
            "bits": bits,
            "group_size": group_size,
            "in_features": channels,
            "out_features": rows,
            "layout_version": interface.LAYOUT_VERSION,
            "has_zeros": has_zeros,
        }
    )
    tensors = [packed.qweight, packed.scales, *([] if packed.zeros is None else [packed.zeros])]
    W4A16_LINEAR.check_shapes(values, [[1, channels], *(list(each.shape) for each in tensors)])
    names = ["float16", *(each.dtype.name for each in tensors)]
    W4A16_LINEAR.check_dtypes(values, names)
