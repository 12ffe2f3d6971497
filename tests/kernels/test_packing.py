"""The kernels' layout: round trips, golden words and the fragment of every lane."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from awq_edge.errors import ConfigError
from awq_edge.kernels.packing import PackedWeight, pack, pack_gate_up, unpack
from awq_edge.model.w4a16 import QuantizedWeight


def random_weight(
    seed: int, out: int, groups: int, bits: int, group_size: int, symmetric: bool = False
) -> QuantizedWeight:
    random = np.random.default_rng(seed)
    zeros = random.integers(0, 2**bits, (out, groups), dtype=np.uint8)
    if symmetric:
        zeros[:] = 2 ** (bits - 1)
    return QuantizedWeight(
        codes=random.integers(0, 2**bits, (out, groups * group_size), dtype=np.uint8),
        scales=random.uniform(0.001, 1, (out, groups)).astype(np.float16),
        zeros=zeros,
        bits=bits,
    )


def assert_equal(one: QuantizedWeight, other: QuantizedWeight) -> None:
    assert one.bits == other.bits
    for name in ("codes", "scales", "zeros"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_zeros_are_kept_where_they_are_asked_for() -> None:
    gate, up = (random_weight(seed, 20, 2, 4, 64, symmetric=True) for seed in (1, 2))
    assert pack(gate).zeros is None and pack_gate_up(gate, up).zeros is None
    kept, both = pack(gate, keep_zeros=True), pack_gate_up(gate, up, keep_zeros=True)
    assert kept.zeros is not None and both.zeros is not None
    assert (kept.zeros == np.int32(-2004318072)).all()  # 0x88888888
    assert_equal(unpack(kept), gate)


@given(
    seed=st.integers(0, 2**32 - 1),
    out=st.integers(1, 50),
    groups=st.integers(1, 9),
    bits=st.sampled_from([3, 4, 8]),
    group_size=st.sampled_from([32, 64, 128]),
    symmetric=st.booleans(),
)
def test_unpack_inverts_pack(
    seed: int, out: int, groups: int, bits: int, group_size: int, symmetric: bool
) -> None:
    weight = random_weight(seed, out, groups, bits, group_size, symmetric)
    packed = pack(weight)
    assert_equal(unpack(packed), weight)
    tiles, blocks = -(-out // 16), -(-groups * group_size // 128)
    assert packed.qweight.shape == (tiles, blocks, 64 * bits)
    assert packed.scales.shape == (tiles, blocks * 128 // group_size, 8, 2)
    if symmetric:
        assert packed.zeros is None
    elif packed.zeros is not None:
        assert packed.zeros.shape == (*packed.scales.shape[:2], 4 if bits == 8 else 2)
    for array in (packed.qweight, packed.scales):
        assert array.flags.c_contiguous


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("rows", [8, 20, 64])
def test_unpack_inverts_pack_gate_up(bits: int, rows: int) -> None:
    gate, up = (random_weight(seed, rows, 3, bits, 64) for seed in (1, 2))
    packed = pack_gate_up(gate, up)
    assert packed.out_features == 2 * rows
    both = unpack(packed)
    assert_equal(
        both,
        QuantizedWeight(
            np.concatenate([gate.codes, up.codes]),
            np.concatenate([gate.scales, up.scales]),
            np.concatenate([gate.zeros, up.zeros]),
            bits,
        ),
    )


def test_rows_of_gate_and_up_share_a_tile() -> None:
    gate, up = (random_weight(seed, 16, 1, 4, 128) for seed in (1, 2))
    woven = pack_gate_up(gate, up)
    by_hand = QuantizedWeight(
        *(
            np.concatenate([a[:8], b[:8], a[8:], b[8:]])
            for a, b in (
                (gate.codes, up.codes),
                (gate.scales, up.scales),
                (gate.zeros, up.zeros),
            )
        ),
        4,
    )
    np.testing.assert_array_equal(woven.qweight, pack(by_hand).qweight)


def _one_code(bits: int, row: int, channel: int, value: int) -> PackedWeight:
    codes = np.zeros((16, 128), np.uint8)
    codes[row, channel] = value
    ones = np.ones((16, 1), np.float16)
    return pack(QuantizedWeight(codes, ones, np.zeros((16, 1), np.uint8), bits))


@pytest.mark.parametrize(
    ("bits", "row", "channel", "word", "value"),
    [
        # By hand from the drawing in w4a16_layout.h. channel 0: lane 0, h 0, s 0, r 0, e 0.
        (4, 0, 0, 0, 0xF),
        # Row 9: g 1, r & 1; channel 77 = 64 + 8 + 4 + 1: h 1, t 1, s 1, r >> 1 = 0, e 1:
        # vector 1, lane 5, word 1, nibble 1 + 4.
        (4, 9, 77, 128 + 20 + 1, 0xF << 20),
        # Row 15, channel 127 = 64 + 32 + 24 + 4 + 2 + 1: lane 31, s 3, r 3, e 1: nibble 7.
        (4, 15, 127, 255, 0xF << 28),
        # 8 bits: row 8, channel 35 = 32 + 2 + 1: lane 0, s 2, r 3, e 1: word 2 * 2 + 1 = 5:
        # vector 1, lane 0, word 1, byte 3.
        (8, 8, 35, 128 + 1, 0xFF << 24),
        # 3 bits: row 0, channel 4: s 1, r 0: pair 4: word 0, i 4.
        (3, 0, 4, 0, 0x7 << 12),
        # row 8, channel 64 + 1: h 1, r 1, e 1: pair 1 of half 1: word 3, bits 16 + 3.
        (3, 8, 65, 3, 0x7 << 19),
    ],
)
def test_golden_words(bits: int, row: int, channel: int, word: int, value: int) -> None:
    packed = _one_code(bits, row, channel, 2**bits - 1)
    words = packed.qweight.view(np.uint32)[0, 0]
    assert np.flatnonzero(words).tolist() == [word]
    assert words[word] == value


def test_the_last_pair_of_three_bits_is_spread() -> None:
    """Row 8, channel 47 = 32 + 8 + 4 + 2 + 1: lane 1, s 3, r 3, e 1: bit 31 of words 0, 1, 2."""
    words = _one_code(3, 8, 47, 0b101).qweight.view(np.uint32)[0, 0]
    assert np.flatnonzero(words).tolist() == [4, 6]
    assert words[4] == words[6] == 1 << 31


@pytest.mark.parametrize(("bits", "expected"), [(4, 0x0000F500), (8, 0x0F050000)])
def test_golden_zeros(bits: int, expected: int) -> None:
    zeros = np.zeros((16, 1), np.uint8)
    zeros[1], zeros[9] = 5, 15
    packed = pack(
        QuantizedWeight(np.zeros((16, 128), np.uint8), np.ones((16, 1), np.float16), zeros, bits)
    )
    assert packed.zeros is not None
    assert packed.zeros.view(np.uint32)[0, 0, 0] == expected


@pytest.mark.parametrize(
    ("bits", "group_size", "words"),
    [(2, 128, "bits 2"), (4, 16, "group_size 16")],
)
def test_refuses_what_no_kernel_takes(bits: int, group_size: int, words: str) -> None:
    weight = random_weight(0, 16, 2, bits, group_size)
    with pytest.raises(ConfigError, match=words):
        pack(weight)


def test_refuses_scales_of_float32() -> None:
    weight = random_weight(0, 16, 2, 4, 64)
    wide = QuantizedWeight(weight.codes, weight.scales.astype(np.float32), weight.zeros, 4)
    with pytest.raises(ConfigError, match="float32"):
        pack(wide)


def test_refuses_a_gate_unlike_its_up() -> None:
    with pytest.raises(ConfigError, match="differ"):
        pack_gate_up(random_weight(0, 16, 2, 4, 64), random_weight(0, 16, 2, 8, 64))
