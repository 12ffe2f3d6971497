"""Weights: packing by hand, conversions, totals."""

from __future__ import annotations

import numpy as np

from awq_edge.program.weights import (
    Weight,
    bytes_per_token,
    cast,
    columns_repeated,
    concatenated,
    of_array,
    part_bytes,
    row_range,
    rows_packed,
    single_codes,
    two_bits,
)


def test_rows_of_an_odd_number_of_zeros_are_padded() -> None:
    flat = np.array([0x21, 0x43, 0x65], np.uint8)
    weight = single_codes(Weight("zeros", "uint4", (2, 3), "blocks", lambda: iter([flat])))
    np.testing.assert_array_equal(weight.array(), [[1, 2, 3], [4, 5, 6]])
    padded = rows_packed(weight, 4)
    assert (padded.dtype, padded.shape, padded.nbytes) == ("uint8", (2, 2), 4)
    np.testing.assert_array_equal(padded.array(), [[0x21, 0x03], [0x54, 0x06]])
    assert rows_packed(weight, 8) is weight


def test_two_bits_of_a_byte_are_one_code() -> None:
    """By hand: the first code in the lowest bits, rows of zero points padded to whole bytes."""
    codes = np.array([[0, 1, 2, 3, 3, 2, 1, 0], [1, 0, 0, 0, 0, 0, 0, 3]], np.uint8)
    nibbles = codes[:, 0::2] | codes[:, 1::2] << 4
    weight = Weight("codes", "uint4", (2, 8), "blocks", lambda: iter([nibbles]))
    packed = two_bits(weight)
    assert (packed.dtype, packed.shape) == ("uint8", (2, 2))
    np.testing.assert_array_equal(packed.array(), [[0b11100100, 0b00011011], [0b1, 0b11000000]])
    zeros = of_array("zeros", codes[:, :5], "uint8", "blocks")
    assert rows_packed(zeros, 2).array().tolist() == [[0b11100100, 0b11], [0b1, 0]]


def test_columns_are_repeated() -> None:
    weight = of_array("scales", np.array([[1, 2], [3, 4]]), "float32", "blocks")
    assert columns_repeated(weight, 3).array().tolist() == [[1, 1, 1, 2, 2, 2], [3, 3, 3, 4, 4, 4]]


def test_cast_and_concatenation() -> None:
    first = of_array("a", np.arange(6).reshape(2, 3), "float32", "blocks")
    second = of_array("b", np.arange(3).reshape(1, 3), "float32", "blocks")
    both = cast(concatenated("both", [first, second]), "float16")
    assert (both.name, both.shape, both.nbytes) == ("both", (3, 3), 18)
    assert both.array().dtype == np.float16
    np.testing.assert_array_equal(both.array(), [[0, 1, 2], [3, 4, 5], [0, 1, 2]])


def test_a_token_reads_one_row_of_a_table_and_its_share_of_experts() -> None:
    def weight(part: str, rows: int, share: float = 1.0) -> Weight:
        return Weight("x", "float16", (rows, 8), part, lambda: iter([]), share)  # type: ignore[arg-type]

    weights = [weight("embedding", 100), weight("tables", 50), weight("blocks", 10, 0.25)]
    assert part_bytes(weights) == {"embedding": 1600, "blocks": 160, "lm_head": 0, "tables": 800}
    assert bytes_per_token(weights) == 16 + 16 + 40


def test_rows_of_a_weight_that_comes_in_pieces() -> None:
    """Nibbles too: two elements to a byte, rows of whole bytes."""
    values = np.arange(40, dtype=np.float32).reshape(10, 4)
    weight = Weight("x", "float32", (10, 4), "blocks", lambda: iter([values[:3], values[3:]]))
    np.testing.assert_array_equal(row_range(weight, 2, 7).array(), values[2:7])
    codes = np.arange(40, dtype=np.uint8).reshape(10, 4) % 16
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    weight = Weight("x", "uint4", (10, 4), "blocks", lambda: iter([packed.reshape(-1)]))
    found = single_codes(row_range(weight, 3, 9))
    np.testing.assert_array_equal(found.array(), codes[3:9])
