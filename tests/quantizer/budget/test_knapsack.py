"""The choice of one option in each class, against all choices there are."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awq_edge.quantizer.budget.knapsack import Option, select

OPTIONS = st.builds(
    Option,
    weight=st.integers(0, 40).map(lambda each: 12 * each),
    loss=st.floats(0, 10, allow_nan=False),
)
CLASSES = st.lists(st.lists(OPTIONS, min_size=1, max_size=4), min_size=1, max_size=5)


def totals(classes: list[list[Option]], choice: tuple[int, ...]) -> tuple[int, float]:
    taken = [options[index] for options, index in zip(classes, choice, strict=True)]
    return sum(each.weight for each in taken), math.fsum(each.loss for each in taken)


def best(classes: list[list[Option]], capacity: int) -> float:
    choices = itertools.product(*(range(len(options)) for options in classes))
    fitting = [totals(classes, choice) for choice in choices]
    return min(loss for weight, loss in fitting if weight <= capacity)


@settings(max_examples=60, deadline=None)
@given(classes=CLASSES, spare=st.integers(0, 1200))
def test_no_choice_within_the_capacity_loses_less(classes: list[list[Option]], spare: int) -> None:
    capacity = sum(min(option.weight for option in options) for options in classes) + spare
    selection = select(classes, capacity)
    weight, loss = totals(classes, selection.options)
    assert weight <= capacity
    assert loss == pytest.approx(best(classes, capacity), abs=1e-9)
    assert selection.exact


@settings(max_examples=40, deadline=None)
@given(classes=CLASSES, spare=st.integers(0, 1200), cells=st.integers(1, 9))
def test_a_coarse_grid_still_fits_and_says_so(
    classes: list[list[Option]], spare: int, cells: int
) -> None:
    capacity = sum(min(option.weight for option in options) for options in classes) + spare
    selection = select(classes, capacity, max_cells=cells)
    weight, loss = totals(classes, selection.options)
    assert weight <= capacity
    if selection.exact:
        assert loss == pytest.approx(best(classes, capacity), abs=1e-9)
    lightest = tuple(
        min(range(len(options)), key=lambda index: options[index].weight) for options in classes
    )
    assert loss <= totals(classes, lightest)[1] + 1e-9 or not selection.exact


def test_large_weights_with_a_common_divisor_need_few_cells() -> None:
    """Bytes of a large model: gigabytes, in multiples of thousands."""
    unit = 1 << 18
    classes = [
        [Option((3 + index) * unit * (1 + place % 3), 4.0**-index) for index in range(3)]
        for place in range(128)
    ]
    capacity = sum(options[1].weight for options in classes)
    selection = select(classes, capacity)
    assert selection.exact
    assert totals(classes, selection.options)[0] == capacity
    assert totals(classes, selection.options)[1] <= totals(classes, (1,) * 128)[1]


def test_of_equal_losses_the_lighter() -> None:
    assert select([[Option(5, 1.0), Option(9, 1.0)]], 100).options == (0,)
    assert select([[Option(9, 1.0), Option(5, 1.0)]], 100).options == (1,)


def test_what_cannot_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="the lightest options weigh 8, more than 7"):
        select([[Option(3, 0.0)], [Option(5, 0.0), Option(6, 1.0)]], 7)
