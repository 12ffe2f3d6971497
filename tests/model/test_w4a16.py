"""The number format: rounding bounds, packing bytes, edge cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from awq_edge.model import w4a16

SCHEMES: tuple[w4a16.Scheme, ...] = ("asymmetric", "symmetric")
# Scales are rounded to fp16 (11 bits) before the codes are chosen: a step may be 2**-11 larger,
# and a value at the end of the range may lie that much, times the codes in the range, outside.
SCALE_ROUNDING = 2.0**-11
# Below 2**-14 a fp16 scale is subnormal: it is rounded by half its spacing, whatever its size.
SUBNORMAL_ROUNDING = 2.0**-25

weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 3).map(lambda groups: groups * 32)),
    elements=st.floats(-1e4, 1e4, width=32),
)


@settings(max_examples=200, deadline=None)
@example(np.array([[-1e-5, *[1e-4] * 31]], np.float32), 8, "asymmetric")  # a subnormal scale
@given(weight=weights, bits=st.sampled_from([2, 3, 4, 8]), scheme=st.sampled_from(SCHEMES))
def test_rounding_error_is_at_most_half_a_step(
    weight: np.ndarray, bits: int, scheme: w4a16.Scheme
) -> None:
    quantized = w4a16.quantize(weight, bits, 32, scheme)
    steps = np.repeat(quantized.scales.astype(np.float64), 32, axis=1)
    slack = 0.5
    if scheme == "asymmetric":
        slack += 0.5  # the zero point is rounded too, which can move the end of the range
    rounding = np.maximum(SCALE_ROUNDING * steps, SUBNORMAL_ROUNDING)
    error = np.abs(w4a16.dequantize(quantized) - weight)
    assert (error <= steps * slack + rounding * 2**bits).all()
    assert quantized.codes.max() < 2**bits
    assert (quantized.scales > 0).all()


@settings(max_examples=100, deadline=None)
@given(weight=weights, scheme=st.sampled_from(SCHEMES))
def test_zero_is_exact(weight: np.ndarray, scheme: w4a16.Scheme) -> None:
    weight[:, ::3] = 0
    restored = w4a16.dequantize(w4a16.quantize(weight, 4, 32, scheme))
    assert (restored[:, ::3] == 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_representable_weights_come_back_exactly(scheme: w4a16.Scheme) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (6, 64))
    codes[:, 0::32], codes[:, 1::32] = 0, 15  # every group spans its range
    zero = 8 if scheme == "symmetric" else 5
    weight = ((codes - zero) * 0.25).astype(np.float32)
    restored = w4a16.dequantize(w4a16.quantize(weight, 4, 32, scheme))
    np.testing.assert_array_equal(restored, weight)


def test_refusals_say_the_values() -> None:
    with pytest.raises(ValueError, match="in_features 48 is not a multiple of group_size 32"):
        w4a16.quantize(np.zeros((8, 48)), 4, 32, "asymmetric")
    with pytest.raises(ValueError, match="NaN or inf"):
        w4a16.quantize(np.full((8, 32), np.nan), 4, 32, "asymmetric")
    with pytest.raises(ValueError, match="overflows fp16"):
        w4a16.quantize(np.full((8, 32), 1e7), 4, 32, "asymmetric")
