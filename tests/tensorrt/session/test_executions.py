"""How a prompt is cut into executions, for any profiles, chunk and wanted positions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awq_edge.tensorrt.session.ports import EnginePorts, Profile, executions


@st.composite
def engines(draw: st.DrawFn) -> EnginePorts:
    """A profile that takes a single token, and up to three others."""
    ranges = [(1, draw(st.integers(1, 8)))]
    for _ in range(draw(st.integers(0, 3))):
        least = draw(st.integers(1, 40))
        ranges.append((least, draw(st.integers(least, 60))))
    order = draw(st.permutations(ranges))
    rows = [draw(st.integers(1, most)) for _, most in order]
    profiles = [Profile(i, *order[i], rows[i]) for i in range(len(order))]
    return EnginePorts(tuple(profiles), (), 100, "HALF")


@given(engines(), st.data())
def test_every_token_and_row_once_within_what_a_profile_takes(
    ports: EnginePorts, data: st.DataObject
) -> None:
    chunk = data.draw(st.integers(1, ports.max_tokens))
    count = data.draw(st.integers(1, 150))
    wanted = sorted(data.draw(st.sets(st.integers(0, count - 1))))
    planned = executions(ports, chunk, count, wanted)
    at, rows = 0, []
    for execution in planned:
        assert execution.start == at
        assert execution.profile.takes(execution.tokens) and execution.tokens <= chunk
        assert len(execution.rows) <= execution.profile.max_rows
        assert all(0 <= row < execution.tokens for row in execution.rows)
        rows += [at + row for row in execution.rows]
        at += execution.tokens
    assert (at, rows) == (count, wanted)


DECODE, PREFILL = Profile(0, 1, 16, 16), Profile(1, 17, 512, 64)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [(0, 1)]),
        (16, [(0, 16)]),
        (17, [(1, 17)]),
        (513, [(1, 512), (0, 1)]),
        (1200, [(1, 512), (1, 512), (1, 176)]),
    ],
)
def test_a_prompt_in_the_profiles_of_our_engines(
    count: int, expected: list[tuple[int, int]]
) -> None:
    """As few executions as there can be, each in the profile that is made for it."""
    ports = EnginePorts((DECODE, PREFILL), (), 4096, "HALF")
    planned = executions(ports, 512, count, [count - 1])
    assert [(execution.profile.index, execution.tokens) for execution in planned] == expected
    assert [len(execution.rows) for execution in planned] == [0] * (len(expected) - 1) + [1]
