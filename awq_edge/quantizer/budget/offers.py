"""Number formats that are offered for each linear, what they take, and what all may take.

Nothing heavy: `awq_edge.fit` counts the bytes, the quantizer measures the losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from awq_edge.model.archs import Decoder
from awq_edge.model.w4a16 import NumberFormat, NumberFormats


@dataclass(frozen=True)
class Offer:
    """A number format, and the bytes that a unit takes in it."""

    number_format: NumberFormat
    nbytes: int


@dataclass(frozen=True)
class Unit:
    """Linears that get one number format, because one call of a kernel computes them.

    layer: number of the block.
    group: name of their input, see `Decoder.inputs`; of experts, what all of theirs begin with.
    linears: names relative to the block.
    offers: by bytes, the fewest first.
    """

    layer: int
    group: str
    linears: tuple[str, ...]
    offers: tuple[Offer, ...]

    def calls(self, inputs: Mapping[str, Sequence[str]]) -> list[Sequence[str]]:
        """The unit's linears by call: those that read one input. inputs: of the block."""
        members = set(self.linears)
        return [names for names in inputs.values() if members.issuperset(names)]


def groups_of(inputs: Mapping[str, tuple[str, ...]]) -> dict[str, list[tuple[str, ...]]]:
    """The linears of a block that get one format, by group: for each input, those that read it.

    Experts are computed by the same calls: all that read the input of the MLP are one group, and
    all that make its output. inputs: `Decoder.inputs`.
    """
    groups: dict[str, list[tuple[str, ...]]] = {}
    for source, names in inputs.items():
        groups.setdefault(source.partition(".")[0], []).append(names)
    return groups


@dataclass(frozen=True)
class Budget:
    """Units of a model, and the bytes that their weights may take together.

    runtime: whose storage is counted. words: what the bytes are for, as reports say it.
    weights: of all linears of the blocks. fixed_bytes: of those that stay in 16 bits.
    key: all that the offers depend on, beside the model.
    """

    units: tuple[Unit, ...]
    nbytes: int
    runtime: str
    words: str
    weights: int
    fixed_bytes: int
    key: str

    def bounding_formats(self, decoder: Decoder) -> NumberFormats:
        """Formats that take at least as much as those that will be chosen, and not much more: for
        the room on a disk."""
        chosen: dict[Unit, Offer] = {}
        for place in range(max(len(unit.offers) for unit in self.units)):
            chosen = {unit: unit.offers[min(place, len(unit.offers) - 1)] for unit in self.units}
            if sum(offer.nbytes for offer in chosen.values()) >= self.nbytes:
                break
        return formats_of(decoder, chosen)

    def smallest_formats(self, decoder: Decoder) -> NumberFormats:
        """The offer of the fewest bytes of each unit."""
        return formats_of(decoder, {unit: unit.offers[0] for unit in self.units})


def formats_of(decoder: Decoder, chosen: Mapping[Unit, Offer]) -> NumberFormats:
    """The formats of linears by the offers of their units; the main one is that of most weights."""
    formats: dict[str, NumberFormat] = {}
    weights: dict[NumberFormat, int] = {}
    for unit, offer in chosen.items():
        linears = {each.name: each for each in decoder.linears(unit.layer)}
        for name in unit.linears:
            formats[f"{decoder.layer_prefix(unit.layer)}.{name}"] = offer.number_format
            size = linears[name].in_features * linears[name].out_features
            weights[offer.number_format] = weights.get(offer.number_format, 0) + size
    main = max(weights, key=lambda each: weights[each])
    return NumberFormats(main, formats)


def worthwhile(offers: Sequence[Offer]) -> tuple[Offer, ...]:
    """The offers that none has more bits in groups as small and no more bytes; the smallest first.

    A runtime that keeps 3-bit codes in 4 bits is offered no 3 bits.
    """
    kept = [
        offer
        for offer in offers
        if not any(_beats(other, offer) for other in offers if other is not offer)
    ]
    return tuple(sorted(kept, key=lambda offer: (offer.nbytes, offer.number_format.bits)))


def _beats(other: Offer, offer: Offer) -> bool:
    finer, own = other.number_format, offer.number_format
    return (
        other.nbytes <= offer.nbytes
        and finer.bits >= own.bits
        and finer.group_size <= own.group_size
        and (other.nbytes, finer) != (offer.nbytes, own)
    )


Losses = Mapping[NumberFormat, float]  # of one unit, by offered format
