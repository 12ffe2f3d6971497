"""Packed bytes: golden ones, round trips, torch against NumPy, and the reference implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awq_edge.model import bit_strings
from awq_edge.model.layouts import awq_gemm, layouts
from awq_edge.model.w4a16 import NumberFormat, Scheme

torch = pytest.importorskip("torch", reason="needs the [host] extra")

BITS = (2, 3, 4, 8)
SCHEMES: tuple[Scheme, ...] = ("asymmetric", "symmetric")


def random_codes(rows: int, columns: int, bits: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**bits, (rows, columns), dtype=np.uint8)


# AutoAWQ gemm


def test_gemm_golden_bytes() -> None:
    # Output channels 0..7 hold codes 1..8: nibbles from bit 0 up are channels 0,2,4,6,1,3,5,7.
    codes = np.arange(1, 9, dtype=np.uint8)[:, None]
    assert awq_gemm.pack_gemm(codes).view(np.uint32).item() == 0x8642_7531
    assert awq_gemm.pack_gemm(codes).tobytes() == bytes.fromhex("31754286")


@settings(max_examples=50, deadline=None)
@given(words=st.integers(1, 5), columns=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_gemm_round_trip(words: int, columns: int, seed: int) -> None:
    codes = random_codes(8 * words, columns, 4, seed)
    packed = awq_gemm.pack_gemm(codes)
    assert (packed.dtype, packed.shape) == (np.int32, (columns, words))
    np.testing.assert_array_equal(awq_gemm.unpack_gemm(packed), codes)


def test_gemm_refusals_say_the_values() -> None:
    with pytest.raises(ValueError, match="out_features 12 is not a multiple of 8"):
        awq_gemm.pack_gemm(np.zeros((12, 32), dtype=np.uint8))
    with pytest.raises(ValueError, match="code 16 does not fit 4 bits"):
        awq_gemm.pack_gemm(np.full((8, 32), 16, dtype=np.uint8))


# compressed-tensors


def test_dense_golden_bytes() -> None:
    """By hand: code i of b bits begins at bit i * b; the last word is filled with 0."""

    def packed(codes: list[int], bits: int) -> str:
        return bit_strings.pack(np.array([codes], np.uint8), bits).tobytes().hex()

    assert packed([1, 2, 3, 4, 5, 6, 7, 8, 15], 4) == "21436587" + "0f000000"
    assert packed([0, 1, 2, 3], 2) == "e4000000"
    assert packed([1, 200, 3], 8) == "01c80300"
    # 3 bits: code 10 (5 = 0b101) takes bits 30 and 31 and bit 0 of the next word.
    assert packed([0] * 10 + [5], 3) == "00000040" + "01000000"
    assert packed([1, 2, 3, 4, 5, 6, 7, 0], 3) == "d158" + "1f00"


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 100),
    bits=st.sampled_from(BITS),
    seed=st.integers(0, 2**32 - 1),
)
def test_dense_round_trip(rows: int, columns: int, bits: int, seed: int) -> None:
    codes = random_codes(rows, columns, bits, seed)
    packed = bit_strings.pack(codes, bits)
    assert (packed.dtype, packed.shape) == (np.int32, (rows, -(-columns * bits // 32)))
    np.testing.assert_array_equal(bit_strings.unpack(packed, bits, columns), codes)


def test_dense_refuses_a_code_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="code 8 does not fit 3 bits"):
        bit_strings.pack(np.full((2, 32), 8, np.uint8), 3)


@pytest.mark.parametrize("columns", [32, 100, 128])
def test_words_with_room_left_are_read(columns: int) -> None:
    """As the package wrote 3 bits before 0.18: ten codes a word."""
    codes = random_codes(3, columns, 3, 0)
    words = np.zeros((3, -(-columns // 10)), np.uint32)
    for column in range(columns):
        words[:, column // 10] |= codes[:, column].astype(np.uint32) << (3 * (column % 10))
    found = bit_strings.unpack(words.view(np.int32), 3, columns, loose=True)
    np.testing.assert_array_equal(found, codes)


# Both in torch


def stored(
    name: str, bits: int, scheme: Scheme, out_features: int, groups: int, seed: int, device: str
) -> tuple[dict[str, Any], NumberFormat, np.ndarray, np.ndarray, np.ndarray]:
    """Packed in torch: tensors by name, format, codes, scales and zeros."""
    number_format = NumberFormat(bits, 32, scheme)
    codes = random_codes(out_features, 32 * groups, bits, seed)
    zeros = random_codes(out_features, groups, bits, seed + 1)
    if scheme == "symmetric":
        zeros[:] = 2 ** (bits - 1)
    scales = np.random.default_rng(seed).random((out_features, groups)).astype(np.float16)
    arrays = (torch.from_numpy(array).to(device) for array in (codes, scales, zeros))
    tensors = layouts()[name].pack("linear", *arrays, number_format)
    return {n: t.cpu() for n, t in tensors.items()}, number_format, codes, scales, zeros


def check_pack(
    name: str, bits: int, scheme: Scheme, out_features: int, groups: int, seed: int, device: str
) -> None:
    tensors, number_format, codes, scales, zeros = stored(
        name, bits, scheme, out_features, groups, seed, device
    )
    found = layouts()[name].read("linear", number_format, lambda full: tensors[full].numpy())
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_array_equal(found.scales, scales)
    np.testing.assert_array_equal(found.zeros, zeros)
    shape = (out_features, 32 * groups)
    shapes = layouts()[name].shapes("linear", shape, number_format, {})
    assert {n: tuple(t.shape) for n, t in tensors.items()} == shapes
    if name == "awq":
        pairs = {"qweight": awq_gemm.pack_gemm(codes), "qzeros": awq_gemm.pack_gemm(zeros)}
    else:
        pairs = {"weight_packed": bit_strings.pack(codes, bits)}
        if scheme == "asymmetric":
            columns = np.ascontiguousarray(zeros.T)
            pairs["weight_zero_point"] = bit_strings.pack(columns, bits).T
    for suffix, expected in pairs.items():
        tensor = tensors[f"linear.{suffix}"]
        assert tensor.dtype == torch.int32 and tensor.is_contiguous()
        np.testing.assert_array_equal(tensor.numpy(), expected)
    nibbles = np.concatenate(
        list(layouts()[name].nibbles("linear", number_format, lambda full: tensors[full].numpy()))
    )
    if bits <= 4:
        np.testing.assert_array_equal(nibbles, codes[:, 0::2] | codes[:, 1::2] << 4)


@settings(max_examples=100, deadline=None)
@given(
    layout=st.sampled_from([(name, bits) for name in layouts() for bits in layouts()[name].bits]),
    scheme=st.sampled_from(SCHEMES),
    out_features=st.integers(1, 40),
    groups=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_torch_packs_the_bytes_of_numpy(
    layout: tuple[str, int], scheme: Scheme, out_features: int, groups: int, seed: int
) -> None:
    name, bits = layout
    if name == "awq":
        out_features *= 8
    check_pack(name, bits, scheme, out_features, groups, seed, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "bits"), [("awq", 4), *(("compressed-tensors", b) for b in BITS)])
def test_a_gpu_packs_the_same_bytes(name: str, bits: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip(reason="no NVIDIA GPU")
    for scheme in SCHEMES:
        check_pack(name, bits, scheme, 72, 3, 5, "cuda")


@pytest.mark.parametrize("name", list(layouts()))
def test_torch_refuses_a_code_that_does_not_fit(name: str) -> None:
    codes, zeros = torch.full((8, 32), 16, dtype=torch.uint8), torch.zeros(8, 1, dtype=torch.uint8)
    scales = torch.ones(8, 1, dtype=torch.float16)
    with pytest.raises(ValueError, match="code 16 does not fit 4 bits"):
        layouts()[name].pack("linear", codes, scales, zeros, NumberFormat(4, 32, "asymmetric"))


def test_symmetric_codes_have_no_other_zero_point() -> None:
    zeros = torch.full((8, 1), 7, dtype=torch.uint8)
    arrays = (torch.zeros(8, 32, dtype=torch.uint8), torch.ones(8, 1).half(), zeros)
    with pytest.raises(ValueError, match="a zero point is not 8"):
        layouts()["compressed-tensors"].pack("x", *arrays, NumberFormat(4, 32, "symmetric"))


# The reference implementation


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("out_features", [64, 72, 50])
def test_bytes_of_the_reference_compressor(bits: int, scheme: Scheme, out_features: int) -> None:
    """compressed-tensors packs the weight that our codes stand for into the same tensors."""
    pytest.importorskip("compressed_tensors", reason="needs Python 3.11")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    tensors, _, codes, scales, zeros = stored(
        "compressed-tensors", bits, scheme, out_features, 3, 7, "cpu"
    )
    offset = 2 ** (bits - 1)
    signed = torch.from_numpy(zeros.astype(np.int16) - offset).to(torch.int8)
    steps = torch.from_numpy(codes).float() - torch.from_numpy(zeros.repeat(32, 1)).float()
    weight = steps * torch.from_numpy(scales).float().repeat_interleave(32, 1)
    arguments = QuantizationArgs(
        num_bits=bits, symmetric=scheme == "symmetric", strategy="group", group_size=32
    )
    settings = QuantizationScheme(targets=["Linear"], weights=arguments)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    state = {
        "weight": weight,
        "weight_scale": torch.from_numpy(scales),
        "weight_zero_point": signed,
    }
    expected = compressor.compress(state, settings)
    assert set(expected) == {name.removeprefix("linear.") for name in tensors}
    for name, tensor in expected.items():
        ours = tensors[f"linear.{name}"]
        assert ours.dtype == tensor.dtype, name
        np.testing.assert_array_equal(ours.numpy(), tensor.numpy(), err_msg=name)
    restored = compressor.decompress(
        {name.removeprefix("linear."): tensor for name, tensor in tensors.items()}, settings
    )
    np.testing.assert_array_equal(restored["weight"].float().numpy(), weight.half().float().numpy())
