"""Quantities are exact or refused, sizes rounded for people, versions compared as numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awq_edge.units import (
    SIZE_UNITS,
    format_bandwidth,
    format_size,
    parse_bandwidth,
    parse_size,
    release,
    size_text,
)

GiB = 2**30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8 GiB", 8 * GiB),
        ("8GiB", 8 * GiB),
        ("1.5 GiB", 3 * GiB // 2),
        ("512 MiB", GiB // 2),
        ("8 GB", 8_000_000_000),
        ("250 MB", 250_000_000),
        ("0 B", 0),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("102.4 GB/s", 102_400_000_000), ("900 MB/s", 900_000_000)]
)
def test_bandwidths(text: str, expected: int) -> None:
    assert parse_bandwidth(text) == expected


@given(st.integers(min_value=0, max_value=2**50))
def test_formatting_loses_nothing(quantity: int) -> None:
    assert parse_size(format_size(quantity)) == quantity
    assert parse_bandwidth(format_bandwidth(quantity)) == quantity


@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from(sorted(SIZE_UNITS)))
def test_decimals_are_exact_or_refused(whole: int, thousandths: int, unit: str) -> None:
    text = f"{whole}.{thousandths:03d} {unit}"
    scaled = (whole * 1000 + thousandths) * SIZE_UNITS[unit]
    if scaled % 1000:
        with pytest.raises(ValueError, match="whole number"):
            parse_size(text)
    else:
        assert parse_size(text) == scaled // 1000


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_an_error_with_the_units(text: str) -> None:
    try:
        parse_size(text)
    except ValueError as error:
        assert all(unit in str(error) for unit in SIZE_UNITS)
    else:
        assert text.rstrip().endswith(tuple(SIZE_UNITS))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("8", "missing unit"),
        ("8 Gb", "wrong unit"),
        ("8 gib", "wrong unit"),
        ("8 GB/s", "wrong unit"),
        ("-8 GiB", "a number and a unit"),
        ("8  GiB", "a number and a unit"),
        ("eight GiB", "a number and a unit"),
        ("1e3 B", "a number and a unit"),
        ("\u0668 GiB", "a number and a unit"),
        (8, "a number and a unit"),
        (True, "a number and a unit"),
        (None, "a number and a unit"),
    ],
)
def test_wrong_sizes(text: object, what: str) -> None:
    with pytest.raises(ValueError, match=f"{what}.*GiB, MiB, GB, MB, B"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (12_340, "12.3 kB"), (69_050_000, "69.0 MB"),
     (999_999_999, "1,000.0 MB"), (10**9, "1.00 GB"), (-7_780_000_000, "-7.78 GB"),
     (10**12, "1,000.00 GB")],
)  # fmt: skip
def test_sizes_for_people(size: int | None, expected: str) -> None:
    assert size_text(size) == expected


def test_versions_in_numbers() -> None:
    assert release("1.23.2") == release("1.23.0rc1") == (1, 23)
    assert release("36.4.3", None) == (36, 4, 3) > release("36.4", None)
    assert release("10.16.0.72", 3) == (10, 16, 0) and release("12.8+cu") == (12, 8)
    assert release("1.9") < release("1.10")
