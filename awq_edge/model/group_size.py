"""Groups of a model's linears: the size that fits, and the linears that one leaves in 16 bits.

The quantizer, the exporter and `fit` ask here, so that what is predicted is what is done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from awq_edge.errors import ConfigError
from awq_edge.model.archs import Decoder, Linear
from awq_edge.model.layouts import Layout, choose_layout
from awq_edge.model.w4a16 import NumberFormat
from awq_edge.recipe.recipes import Recipe

# What the quantizer makes, largest first. Every runtime takes them all: they are powers of two, and
# the layout of the kernels has no others.
GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True)
class Coverage:
    """Linears of the blocks, experts' included, and their weights.

    reasons: why some stay in 16 bits -> how many of them, and how many weights they have.
    """

    linears: int
    weights: int
    reasons: Mapping[str, tuple[int, int]]

    @property
    def dense_linears(self) -> int:
        return sum(linears for linears, _ in self.reasons.values())

    @property
    def dense_weights(self) -> int:
        return sum(weights for _, weights in self.reasons.values())

    @classmethod
    def of(cls, linears: Iterable[tuple[Linear, str | None, int]]) -> Coverage:
        """The sum of linears, each with why it stays in 16 bits (None: it does not) and how many
        there are of it."""
        by_reason: dict[str, tuple[int, int]] = {}
        total = weights = 0
        for linear, reason, times in linears:
            size = linear.in_features * linear.out_features * times
            total, weights = total + times, weights + size
            if reason is not None:
                count, of_reason = by_reason.get(reason, (0, 0))
                by_reason[reason] = count + times, of_reason + size
        return cls(total, weights, by_reason)

    def lines(self) -> list[str]:
        """The linears that stay in 16 bits, a line for each reason."""
        return [
            f"{linears} of {self.linears} linears, {weights / self.weights:.1%} of the blocks' "
            f"weights, stay in 16 bits: {reason}"
            for reason, (linears, weights) in self.reasons.items()
        ]


def coverage(decoder: Decoder, reasons: Mapping[str, str]) -> Coverage:
    """The sum of a model's linears. reasons: why one stays in 16 bits, by full name."""
    return Coverage.of(
        (linear, reasons.get(f"{decoder.layer_prefix(layer)}.{linear.name}"), 1)
        for layer in range(decoder.num_layers)
        for linear in decoder.linears(layer)
    )


def planned_coverage(decoder: Decoder, layout: Layout, number_format: NumberFormat) -> Coverage:
    """The sum of the linears that a layout would store of a model in this number format."""
    # Layers of a kind have the same linears: a model of many experts has tens of thousands.
    kinds = Counter(decoder.has_experts(layer) for layer in range(decoder.num_layers))
    example = {decoder.has_experts(layer): layer for layer in range(decoder.num_layers)}
    return Coverage.of(
        (
            linear,
            layout.obstacle(linear.out_features, linear.in_features, number_format),
            kinds[kind],
        )
        for kind, layer in example.items()
        for linear in decoder.linears(layer)
    )


@dataclass(frozen=True)
class GroupChoice:
    """size: input channels that share a scale. note: why it is not the recipe's, or None."""

    size: int
    note: str | None


def choose_group_size(recipe: Recipe, decoder: Decoder) -> GroupChoice:
    """The groups of a model: the size that was asked for, if one was.

    Otherwise one for all linears (AutoAWQ's layout knows no other): the recipe's own, where another
    quantizes no more weights, else the largest that quantizes most of them, which divides every
    input where one does.
    """
    quantization = recipe.quantization
    if "quantization.group_size" in recipe.asked:
        return GroupChoice(quantization.group_size, None)
    layout = choose_layout(quantization.format, quantization.bits)
    own = quantization.group_size
    left = {
        size: planned_coverage(
            decoder, layout, NumberFormat(quantization.bits, size, quantization.scheme)
        )
        for size in {own, *GROUP_SIZES}
    }
    best = min(left, key=lambda size: (left[size].dense_weights, size != own, -size))
    if best == own:
        return GroupChoice(own, None)
    dense, share = left[own].dense_linears, left[own].dense_weights / left[own].weights
    return GroupChoice(
        best,
        f"groups of {best}, not the recipe's {own}, which would leave {dense} of "
        f"{left[own].linears} linears, {share:.1%} of the blocks' weights, in 16 bits",
    )


def require_groups(decoder: Decoder, layout: Layout, number_format: NumberFormat) -> Coverage:
    """The planned coverage. Raises ConfigError where every linear is left in 16 bits."""
    planned = planned_coverage(decoder, layout, number_format)
    if planned.dense_linears < planned.linears:
        return planned
    fitting = [
        size
        for size in GROUP_SIZES
        if planned_coverage(decoder, layout, replace(number_format, group_size=size)).dense_linears
        < planned.linears
    ]
    reasons = "; ".join(
        f"{count} linears: {reason}" for reason, (count, _) in planned.reasons.items()
    )
    remedy = "export the model as it is with `awq-edge export MODEL --method none`"
    if fitting:
        remedy = f"give --group-size {max(fitting)}, or leave it out"
    raise ConfigError(
        f"groups of {number_format.group_size} quantize none of the {planned.linears} linears of "
        f"the blocks ({reasons}); {remedy}"
    )
