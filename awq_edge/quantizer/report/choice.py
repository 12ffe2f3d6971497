"""The part of the report that says which number formats a budget has chosen, and by what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from awq_edge.artifacts.schema import Record


class OfferReport(Record):
    """A number format that a unit could have. bytes: of its weights, as the runtime stores them.
    loss: what it is estimated to add to the divergence from the original model, nats a token."""

    bits: int
    group_size: int
    bytes: int
    loss: float

    @property
    def title(self) -> str:
        return f"{self.bits}-bit, g{self.group_size}"


class UnitReport(Record):
    """Linears that share a call of a kernel, and so a format. group: the input that they read, see
    `Decoder.inputs`. offers: the fewest bytes first. chosen: the place of the one that was taken.
    """

    layer: int
    group: str
    offers: tuple[OfferReport, ...]
    chosen: int

    @property
    def offer(self) -> OfferReport:
        return self.offers[self.chosen]


class UniformReport(Record):
    """All units in one number format that each of them is offered; as `OfferReport`."""

    bits: int
    group_size: int
    bytes: int
    loss: float


class ChoiceReport(Record):
    """budget: in words. runtime: whose storage is counted. budget_bytes: that the units may take.
    chosen_bytes: that they take. bits_per_weight: with the linears that stay in 16 bits. loss: the
    sum of the units'. exact: no choice within the budget has a smaller sum; otherwise bytes were
    rounded up to a grid. uniform: what one format for all would take and lose."""

    budget: str
    runtime: str
    budget_bytes: int
    chosen_bytes: int
    bits_per_weight: float
    loss: float
    exact: bool
    units: tuple[UnitReport, ...]
    uniform: tuple[UniformReport, ...]

    def counts(self) -> Mapping[str, Counter[str]]:
        """How many blocks have which format, by group."""
        counts: dict[str, Counter[str]] = {}
        for unit in self.units:
            counts.setdefault(unit.group, Counter())[unit.offer.title] += 1
        return counts

    def formats(self) -> list[str]:
        """The formats that were taken, by bits and groups."""
        taken = {(unit.offer.bits, unit.offer.group_size, unit.offer.title) for unit in self.units}
        return [title for _, _, title in sorted(taken)]

    @property
    def widths(self) -> str:
        """The bits that linears have: "3 to 4", or "4"."""
        bits = sorted({unit.offer.bits for unit in self.units})
        return str(bits[0]) if len(bits) == 1 else f"{bits[0]} to {bits[-1]}"

    def _neighbours(self) -> list[UniformReport]:
        """The largest of `uniform` within the budget, and the smallest beyond it."""
        by_bytes = sorted(self.uniform, key=lambda each: each.bytes)
        within = [each for each in by_bytes if each.bytes <= self.budget_bytes]
        return [*within[-1:], *by_bytes[len(within) :][:1]]

    def lines(self) -> list[str]:
        """The choice in sentences."""
        how = "no other loses less" if self.exact else "no other on a grid of bytes loses less"
        lines = [
            f"chosen for {self.budget}, as runtime {self.runtime} stores linears: "
            f"{self.chosen_bytes:,} of {self.budget_bytes:,} bytes, {self.bits_per_weight:.3f} "
            f"bits a weight; by the estimated losses {how}"
        ]
        if neighbours := self._neighbours():
            others = ", ".join(
                f"{each.bits} bits in groups of {each.group_size} {each.loss:.4f} "
                f"({each.bytes / self.chosen_bytes:.0%} of the bytes)"
                for each in neighbours
            )
            lines.append(
                f"estimated divergence {self.loss:.4f} nats a token; one for all: {others}"
            )
        return lines
