"""Quantities and versions as texts: "8 GiB" and "102.4 GB/s" to integers and back, exactly; sizes
rounded for people; versions in numbers."""

from __future__ import annotations

import re
from fractions import Fraction

SIZE_UNITS = {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6, "B": 1}  # bytes
BANDWIDTH_UNITS = {"GB/s": 10**9, "MB/s": 10**6, "B/s": 1}  # bytes/s

_QUANTITY = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>[A-Za-z/]*)", re.ASCII)


def parse_quantity(text: object, units: dict[str, int], example: str) -> int:
    """The integer that `text`, a number and one of `units`, stands for.

    Raises ValueError, naming the allowed units, when the unit is wrong or missing or the result is
    not a whole number.
    """
    allowed = f"allowed units: {', '.join(units)} (for example {example!r})"
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"must be a number and a unit in quotes; {allowed}")
    unit = units.get(match["unit"])
    if unit is None:
        raise ValueError(f"{'wrong' if match['unit'] else 'missing'} unit; {allowed}")
    quantity = Fraction(match["number"]) * unit
    if quantity.denominator != 1:
        raise ValueError(f"must be a whole number of {list(units)[-1]}; {allowed}")
    return int(quantity)


def format_quantity(quantity: int, units: dict[str, int]) -> str:
    """An exact text of `quantity`, in the first of `units` that needs at most three decimals.

    The inverse of parse_quantity: nothing is rounded. The last of `units` must be 1.
    """
    for unit, factor in units.items():
        thousandths, rest = divmod(quantity * 1000, factor)
        if rest == 0 and quantity >= factor:
            whole, decimals = divmod(thousandths, 1000)
            return f"{whole}.{decimals:03d}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{quantity} {list(units)[-1]}"


def parse_size(text: object) -> int:
    """Bytes of a text such as "8 GiB". Raises ValueError like parse_quantity."""
    return parse_quantity(text, SIZE_UNITS, "8 GiB")


def parse_bandwidth(text: object) -> int:
    """Bytes/s of a text such as "102.4 GB/s". Raises ValueError like parse_quantity."""
    return parse_quantity(text, BANDWIDTH_UNITS, "102.4 GB/s")


def format_size(size: int) -> str:
    """The inverse of parse_size. size: bytes."""
    return format_quantity(size, SIZE_UNITS)


def format_bandwidth(bandwidth: int) -> str:
    """The inverse of parse_bandwidth. bandwidth: bytes/s."""
    return format_quantity(bandwidth, BANDWIDTH_UNITS)


def size_text(size: int | None) -> str:
    """Bytes as people read them: "1.24 GB", "69.1 MB"; "-" for None."""
    if size is None:
        return "-"
    for unit, factor, decimals in (("GB", 10**9, 2), ("MB", 10**6, 1), ("kB", 10**3, 1)):
        if abs(size) >= factor:
            return f"{size / factor:,.{decimals}f} {unit}"
    return f"{size} B"


def release(version: str, parts: int | None = 2) -> tuple[int, ...]:
    """The first numbers of a version: "1.23.0rc1" -> (1, 23). parts: how many, None for all."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:parts])
