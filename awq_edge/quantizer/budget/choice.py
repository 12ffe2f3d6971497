"""The number format of each linear: the least sum of losses within a budget."""

from __future__ import annotations

from collections.abc import Sequence

from awq_edge.model.archs import Decoder
from awq_edge.model.w4a16 import NumberFormats
from awq_edge.quantizer.budget.knapsack import Option, select
from awq_edge.quantizer.budget.offers import Budget, Losses, formats_of
from awq_edge.quantizer.report.choice import ChoiceReport, OfferReport, UniformReport, UnitReport


def choose(budget: Budget, losses: Sequence[Losses]) -> ChoiceReport:
    """The choice. losses: of each unit."""
    classes = [
        [Option(offer.nbytes, loss[offer.number_format]) for offer in unit.offers]
        for unit, loss in zip(budget.units, losses, strict=True)
    ]
    selection = select(classes, budget.nbytes)
    units = tuple(
        UnitReport(
            layer=unit.layer,
            group=unit.group,
            offers=tuple(
                OfferReport(
                    bits=offer.number_format.bits,
                    group_size=offer.number_format.group_size,
                    bytes=offer.nbytes,
                    loss=loss[offer.number_format],
                )
                for offer in unit.offers
            ),
            chosen=chosen,
        )
        for unit, loss, chosen in zip(budget.units, losses, selection.options, strict=True)
    )
    chosen_bytes = sum(unit.offer.bytes for unit in units)
    return ChoiceReport(
        budget=budget.words,
        runtime=budget.runtime,
        budget_bytes=budget.nbytes,
        chosen_bytes=chosen_bytes,
        bits_per_weight=8 * (chosen_bytes + budget.fixed_bytes) / budget.weights,
        loss=sum(unit.offer.loss for unit in units),
        exact=selection.exact,
        units=units,
        uniform=tuple(_uniform(units)),
    )


def _uniform(units: Sequence[UnitReport]) -> list[UniformReport]:
    """Each format that all units are offered."""
    by_format = [{(each.bits, each.group_size): each for each in unit.offers} for unit in units]
    shared = sorted(set.intersection(*(set(offers) for offers in by_format)))
    return [
        UniformReport(
            bits=bits,
            group_size=group_size,
            bytes=sum(offers[bits, group_size].bytes for offers in by_format),
            loss=sum(offers[bits, group_size].loss for offers in by_format),
        )
        for bits, group_size in shared
    ]


def chosen_formats(decoder: Decoder, budget: Budget, choice: ChoiceReport) -> NumberFormats:
    """The formats of a choice by linear."""
    pairs = zip(budget.units, choice.units, strict=True)
    return formats_of(decoder, {unit: unit.offers[each.chosen] for unit, each in pairs})
