"""Number format of the output layer: stored by the quantizer, or rounded by the exporter.

The quantizer stores it in layouts that can mix bits, in the groups of the blocks. Elsewhere it is
rounded to nearest at export, in small groups, because nothing corrects its error.
"""

from __future__ import annotations

from awq_edge.model.layouts import Layout
from awq_edge.model.w4a16 import NumberFormat, Scheme
from awq_edge.recipe.recipes import Recipe

LM_HEAD_GROUP_SIZE = 32
LM_HEAD_SCHEMES: dict[int, Scheme] = {4: "asymmetric", 8: "symmetric"}
# Smaller groups, for outputs whose inputs are no multiple of the asked ones.
_GROUP_SIZES = (128, 64, 32)
# Zero points cost a byte a group and gain under 1 dB where there are 256 levels; kernels for 8 bits
# often have none.
_SYMMETRIC_BITS = 8
UNQUANTIZED = 16


def for_export(recipe: Recipe) -> Recipe:
    """The recipe with the layout of the checkpoint that an export makes on its way.

    It holds a quantized output layer, whatever the recipe's does: nobody else reads it, and
    calibrated the layer is better than what the exporter does without a text.
    """
    if recipe.quantization.lm_head_bits == UNQUANTIZED:
        return recipe
    return recipe.resolved({"quantization.format": "compressed-tensors"})


def output_format(
    layout: Layout, asked: NumberFormat, bits: int, in_features: int
) -> NumberFormat | None:
    """The number format in which a layout stores an output layer: `bits` of the asked groups and
    scheme.

    Groups become smaller where in_features is no multiple of them; 8 bits are symmetric. None where
    it stays in 16 bits: they were asked for, the layout has no other or no group fits.
    """
    if bits == UNQUANTIZED or not layout.mixed:
        return None
    for group_size in (asked.group_size, *_GROUP_SIZES):
        if group_size <= asked.group_size and in_features % group_size == 0:
            scheme = "symmetric" if bits == _SYMMETRIC_BITS else asked.scheme
            return NumberFormat(bits, group_size, scheme)
    return None


def rounded_bits(in_features: int, asked: int) -> int:
    """The bits that an output layer is rounded to at export: groups that do not fit leave it
    unquantized (16)."""
    return UNQUANTIZED if in_features % LM_HEAD_GROUP_SIZE else asked


def rounded_format(bits: int) -> NumberFormat:
    """The number format of an output layer that is rounded at export. bits: 4 or 8."""
    return NumberFormat(bits, LM_HEAD_GROUP_SIZE, LM_HEAD_SCHEMES[bits])
