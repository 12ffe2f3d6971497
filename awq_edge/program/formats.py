"""Formats of a bundle's linears, quantized or not: as an export would have it, or a config says.

The rules are the quantizer's and the exporter's own: layouts say what they cannot store, and
`awq_edge.model.lm_head` what becomes of the output layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from awq_edge.model.archs import Config, Decoder, Linear
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.fused_experts import names_in_memory
from awq_edge.model.group_size import Coverage, require_groups
from awq_edge.model.layouts import choose_layout, layout_of_config, quantization_config
from awq_edge.model.lm_head import UNQUANTIZED, output_format, rounded_bits, rounded_format
from awq_edge.model.w4a16 import NumberFormat, NumberFormats
from awq_edge.program.program import Quantized
from awq_edge.recipe.recipes import QuantizationDefaults

# Of a linear by full name, out_features and in_features; None: unquantized.
FormatOf = Callable[[str, int, int], Quantized | None]


@dataclass(frozen=True)
class Formats:
    """The formats of one model. main: of most linears of the blocks, None for an unquantized model.
    blocks: of a block's linear. lm_head: of the output layer. stored_lm_head: the checkpoint has it
    so; otherwise an export rounds it. by_size: linears of one size have one format, whatever their
    names."""

    main: NumberFormat | None
    blocks: FormatOf
    lm_head: Quantized | None
    stored_lm_head: bool = False
    by_size: bool = False

    def layer_counts(self, decoder: Decoder) -> dict[int, int]:
        """One layer of each kind, and how many there are of it: their linears have the same sizes
        and formats."""
        layers = range(decoder.num_layers)
        if not self.by_size:
            return dict.fromkeys(layers, 1)
        counts: dict[int, int] = {}
        first: dict[bool, int] = {}
        for layer in layers:
            like = first.setdefault(decoder.has_experts(layer), layer)
            counts[like] = counts.get(like, 0) + 1
        return counts

    @property
    def lm_head_bits(self) -> int:
        return self.lm_head.number_format.bits if self.lm_head else UNQUANTIZED


def stored_coverage(decoder: Decoder, formats: Formats) -> Coverage:
    """Linears of blocks that stay unquantized, those of experts included."""

    def reason(prefix: str, linear: Linear) -> str | None:
        stored = formats.blocks(f"{prefix}.{linear.name}", linear.out_features, linear.in_features)
        return "unquantized" if stored is None else None

    return Coverage.of(
        (linear, reason(decoder.layer_prefix(layer), linear), count)
        for layer, count in formats.layer_counts(decoder).items()
        for linear in decoder.linears(layer)
    )


def planned_formats(
    decoder: Decoder,
    quantization: QuantizationDefaults | None,
    lm_head_bits: int,
    others: Mapping[str, NumberFormat] | None = None,
) -> Formats:
    """The formats that `awq-edge export` gives an unquantized model.

    quantization: bits, groups, scheme and layout; None to leave it unquantized. lm_head_bits: 4, 8
    or 16. others: of linears by full name, where they are not the quantization's. Raises
    ConfigError where the layout cannot hold the bits, or no linear fits the groups.
    """
    if quantization is None:
        return Formats(None, _unquantized, _rounded(decoder, lm_head_bits), by_size=True)
    layout = choose_layout(quantization.format, quantization.bits)
    main = NumberFormat(quantization.bits, quantization.group_size, quantization.scheme)
    require_groups(decoder, layout, main)
    formats, uniform = NumberFormats(main, others or {}), not others

    def of_block(name: str, out_features: int, in_features: int) -> Quantized | None:
        number_format = formats.of(name)
        if layout.obstacle(out_features, in_features, number_format):
            return None
        return Quantized(number_format, layout.stores_zeros(number_format))

    head = output_format(layout, main, lm_head_bits, decoder.embedding_size)
    if head is not None:
        stored_head = Quantized(head, layout.stores_zeros(head))
        return Formats(main, of_block, stored_head, stored_lm_head=True, by_size=uniform)
    return Formats(main, of_block, _rounded(decoder, lm_head_bits), by_size=uniform)


def stored_formats(
    decoder: Decoder, config: Config, lm_head_bits: int, path: Path
) -> Formats | None:
    """The formats that a quantized checkpoint's config.json names; None for an unquantized model.

    lm_head_bits: of an output layer that the checkpoint has unquantized. path: for errors. Raises
    ModelError for what no layout here reads.
    """
    quantization = quantization_config(config)
    if quantization is None:
        return None
    layout = layout_of_config(quantization, path)
    stored = layout.read_config(quantization, path / "config.json")
    kept = frozenset(quantization.get("modules_to_not_convert") or ())

    def of(name: str, out_features: int, in_features: int) -> Quantized | None:
        number_format = (
            None if name in kept else stored.format_of(names_in_memory(name, decoder), in_features)
        )
        if number_format is None or layout.obstacle(out_features, in_features, number_format):
            return None
        return Quantized(number_format, layout.stores_zeros(number_format))

    head = decoder.architecture.lm_head
    lm_head = None
    if layout.mixed and not decoder.tied_embeddings:
        lm_head = of(head, decoder.vocab_size, decoder.embedding_size)
    main = next((each for each in stored.targets.values()), None)
    rounded = lm_head or _rounded(decoder, lm_head_bits)
    return Formats(main, of, rounded, lm_head is not None)


def checkpoint_formats(checkpoint: Checkpoint, lm_head_bits: int) -> Formats:
    """The formats that the tensors of a checkpoint have, and its output layer an export.

    lm_head_bits: of an output layer that the checkpoint has unquantized.
    """
    layout, lm_head = checkpoint.layout, checkpoint.decoder.architecture.lm_head

    def of(name: str, out_features: int, in_features: int) -> Quantized | None:
        if layout is None or not checkpoint.is_quantized(name):
            return None
        number_format = checkpoint.linear_format(name)
        return Quantized(number_format, layout.stores_zeros(number_format))

    stored = of(lm_head, 0, 0)
    rounded = stored or _rounded(checkpoint.decoder, lm_head_bits)
    return Formats(checkpoint.main_format, of, rounded, stored_lm_head=stored is not None)


def _unquantized(name: str, out_features: int, in_features: int) -> Quantized | None:
    return None


def _rounded(decoder: Decoder, asked: int) -> Quantized | None:
    bits = rounded_bits(decoder.embedding_size, asked)
    if bits == UNQUANTIZED:
        return None
    number_format = rounded_format(bits)
    return Quantized(number_format, number_format.scheme == "asymmetric")
