"""Places of buffers: never two at once in the same bytes, and no more bytes than are in use."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from awq_edge.exporter.cuda_arena import Lifetime, assign

LIFETIMES = st.lists(
    st.tuples(st.integers(1, 64), st.integers(0, 30), st.integers(0, 10)).map(
        lambda drawn: Lifetime(16 * drawn[0], drawn[1], drawn[1] + drawn[2])
    ),
    max_size=24,
)


@settings(max_examples=200, deadline=None)
@given(LIFETIMES)
def test_what_is_in_use_together_lies_apart(lifetimes: list[Lifetime]) -> None:
    offsets, total = assign(lifetimes)
    for (a, one), (b, other) in itertools.combinations(zip(offsets, lifetimes, strict=True), 2):
        apart = a + one.size <= b or b + other.size <= a
        assert apart or not one.overlaps(other)
    assert total == max(
        (o + each.size for o, each in zip(offsets, lifetimes, strict=True)), default=0
    )
    assert all(offset % 16 == 0 for offset in offsets)


def test_buffers_that_follow_each_other_share_bytes() -> None:
    chain = [Lifetime(64, number, number + 1) for number in range(10)]
    assert assign(chain)[1] == 128
    assert assign([Lifetime(64, 0, 9), *chain])[1] == 192
