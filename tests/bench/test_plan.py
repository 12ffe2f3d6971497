"""Lengths that fit, and prompts that are the same everywhere."""

from __future__ import annotations

import pytest

from awq_edge.bench.plan import Cell, make_plan, parse_lengths, prompt_ids
from awq_edge.errors import ConfigError


def test_default_lengths_are_those_that_fit() -> None:
    assert make_plan(1024).cells == (Cell(32, 64), Cell(128, 64), Cell(512, 64))
    assert make_plan(575).cells[-1] == Cell(512, 64)
    assert make_plan(574).cells[-1] == Cell(128, 64)
    assert make_plan(16).cells == (Cell(4, 8),)
    assert make_plan(1).cells == (Cell(1, 1),)


def test_every_pair_of_given_lengths() -> None:
    plan = make_plan(100, prompt_lengths=[20, 10, 20], generated_lengths=[5, 1], repeats=3)
    assert plan.cells == (Cell(10, 1), Cell(20, 1), Cell(10, 5), Cell(20, 5))
    assert plan.requests == 4 * (1 + 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_lengths": [100], "generated_lengths": [30]}, "need 129 positions"),
        ({"prompt_lengths": [0]}, "--prompt 0: must be 1 or more"),
        ({"generated_lengths": [-1]}, "--generated -1"),
        ({"repeats": 0}, "--repeats 0: must be 1 or more"),
        ({"warmup": -1}, "--warmup -1: must be 0 or more"),
        ({"seed": -1}, "--seed -1"),
        ({"sample_interval": 0.0}, "--sample-interval 0.0"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(128, **options)  # type: ignore[arg-type]


def test_the_last_token_needs_no_position() -> None:
    assert make_plan(128, prompt_lengths=[100], generated_lengths=[29]).cells == (Cell(100, 29),)


def test_lengths_as_typed() -> None:
    assert parse_lengths("--prompt", "128,512") == (128, 512)
    assert parse_lengths("--prompt", None) is None
    with pytest.raises(ConfigError, match="--prompt 1;2: give whole numbers"):
        parse_lengths("--prompt", "1;2")


def test_prompts_are_fixed_for_good() -> None:
    """These are the ids that published figures were measured with."""
    assert prompt_ids(32000, frozenset({0, 1, 2}), 8, 0) == [
        *(8055, 17980, 29940, 28745, 30697, 4875, 21854, 22691)
    ]


def test_prompts_avoid_special_tokens_and_grow_at_the_end() -> None:
    special = frozenset({0, 1, 2, 5})
    long = prompt_ids(7, special, 500, 3)
    assert set(long) == {3, 4, 6}
    assert prompt_ids(7, special, 20, 3) == long[:20]
    assert prompt_ids(7, special, 500, 4) != long
    with pytest.raises(ConfigError, match="all 4 ids"):
        prompt_ids(4, frozenset(range(4)), 1, 0)
