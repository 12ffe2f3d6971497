"""The torch rounding has the bits of the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from awq_edge.model import w4a16
from awq_edge.quantizer.search.rounding import NumberFormat, fake_quantize, round_to_nearest

SCHEMES: tuple[w4a16.Scheme, ...] = ("asymmetric", "symmetric")

weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 3).map(lambda groups: groups * 32)),
    elements=st.floats(-1e4, 1e4, width=32),
)


@settings(max_examples=200, deadline=None)
@given(weight=weights, bits=st.sampled_from([2, 3, 4, 8]), scheme=st.sampled_from(SCHEMES))
def test_equal_bits(weight: np.ndarray, bits: int, scheme: w4a16.Scheme) -> None:
    expected = w4a16.quantize(weight, bits, 32, scheme)
    found = round_to_nearest(torch.from_numpy(weight), NumberFormat(bits, 32, scheme))
    np.testing.assert_array_equal(found.codes.numpy(), expected.codes)
    np.testing.assert_array_equal(found.scales.numpy(), expected.scales)
    np.testing.assert_array_equal(found.zeros.numpy(), expected.zeros)
    np.testing.assert_array_equal(found.dequantize().numpy(), w4a16.dequantize(expected))


@settings(max_examples=100, deadline=None)
@given(weight=weights, scheme=st.sampled_from(SCHEMES), ratio=st.floats(0.25, 1))
def test_fake_quantize_is_rounding_and_back(
    weight: np.ndarray, scheme: w4a16.Scheme, ratio: float
) -> None:
    tensor = torch.from_numpy(weight)
    number_format = NumberFormat(4, 32, scheme)
    ratios = torch.full((len(weight), weight.shape[1] // 32), ratio)
    rounded = round_to_nearest(tensor, number_format, ratios)
    torch.testing.assert_close(
        fake_quantize(tensor, number_format, ratios), rounded.dequantize(), rtol=0, atol=0
    )


def test_a_ratio_shrinks_the_range_of_its_group_alone() -> None:
    weight = torch.linspace(-1, 1, 64)[None, :].repeat(2, 1)
    ratio = torch.tensor([[1.0, 0.5], [1.0, 1.0]])
    restored = fake_quantize(weight, NumberFormat(4, 32, "symmetric"), ratio)
    assert restored[0, 32:].max() < 0.6
    assert restored[0, :32].min() == restored[1, :32].min()
    assert restored[1, 32:].max() > 0.8


def test_overflow_is_refused() -> None:
    with pytest.raises(ValueError, match="overflows fp16"):
        round_to_nearest(torch.full((1, 32), 1e7), NumberFormat(4, 32, "asymmetric"))
