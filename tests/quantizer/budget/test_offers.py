"""Which formats are offered, and what is chosen of them."""

from __future__ import annotations

import math

from awq_edge.model.w4a16 import NumberFormat
from awq_edge.quantizer.budget.choice import choose
from awq_edge.quantizer.budget.offers import Budget, Losses, Offer, Unit, worthwhile


def form(bits: int, group_size: int = 64) -> NumberFormat:
    return NumberFormat(bits, group_size, "asymmetric")


def offer(bits: int, nbytes: int, group_size: int = 64) -> Offer:
    return Offer(form(bits, group_size), nbytes)


def test_a_width_that_a_runtime_keeps_in_a_wider_one_is_not_offered() -> None:
    in_four_bits = [offer(2, 100), offer(3, 100), offer(4, 100), offer(8, 200)]
    assert worthwhile(in_four_bits) == (offer(4, 100), offer(8, 200))
    saving = [offer(8, 200), offer(3, 75), offer(4, 100)]
    assert worthwhile(saving) == (offer(3, 75), offer(4, 100), offer(8, 200))


def test_smaller_groups_of_more_bits_beat_larger_ones_of_as_many_bytes() -> None:
    assert worthwhile([offer(3, 90, 32), offer(4, 90, 128)]) == (
        offer(3, 90, 32),
        offer(4, 90, 128),
    )  # neither is better by itself
    assert worthwhile([offer(3, 90, 128), offer(4, 90, 32)]) == (offer(4, 90, 32),)
    assert worthwhile([offer(4, 90, 128), offer(4, 90, 32)]) == (offer(4, 90, 32),)
    same = [offer(4, 90), offer(4, 90)]
    assert set(worthwhile(same)) == {offer(4, 90)}


def test_the_choice_says_what_one_format_for_all_would_lose() -> None:
    units = tuple(
        Unit(layer, "mlp_in", ("mlp.gate_proj", "mlp.up_proj"), (offer(3, 30), offer(4, 40)))
        for layer in range(3)
    )
    losses: list[Losses] = [
        {form(3): 4.0, form(4): 1.0},
        {form(3): 9.0, form(4): 2.0},
        {form(3): 1.0, form(4): 0.25},
    ]
    choice = choose(Budget(units, 101, "cuda", "a test", 80, 5, ""), losses)
    assert [unit.offer.bits for unit in choice.units] == [3, 4, 3]
    assert (choice.chosen_bytes, choice.loss, choice.exact) == (100, 7.0, True)
    assert choice.bits_per_weight == 8 * (100 + 5) / 80
    assert [(each.bits, each.bytes, each.loss) for each in choice.uniform] == [
        (3, 90, 14.0),
        (4, 120, 3.25),
    ]
    assert choice.counts() == {"mlp_in": {"3-bit, g64": 2, "4-bit, g64": 1}}
    assert choice.widths == "3 to 4"
    assert "3 bits in groups of 64 14.0000 (90% of the bytes)" in choice.lines()[1]
    assert math.isclose(sum(unit.offer.loss for unit in choice.units), choice.loss)
