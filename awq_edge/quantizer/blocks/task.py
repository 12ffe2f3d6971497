"""Tasks: the linears that are quantized together, a block's or the output layer's, as data.

A task holds no tensors and is picklable, so that any machine may work on it, and again where the
work was lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch

from awq_edge.model.archs import Decoder, ScaleGroup
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.layouts import Layout
from awq_edge.quantizer.calibration.statistics import InputStatistics, WeightsOnly
from awq_edge.quantizer.checkpoint.writer import storage_dtype
from awq_edge.quantizer.search.effort import Effort
from awq_edge.quantizer.search.rounding import NumberFormat, NumberFormats

Observed = Mapping[str, InputStatistics]  # by the name of an input
Statistics = Mapping[str, InputStatistics] | Mapping[str, WeightsOnly]
Inputs = TypeVar("Inputs")

_PIECE_VALUES = 1 << 25  # weights of a piece of the output layer: 128 MB of float32


@dataclass(frozen=True)
class BlockOptions:
    """How blocks are quantized and stored. formats: number formats of the linears; those of one
    scale group have the same. statistics_budget: bytes of one block's statistics.
    propagate_error: later blocks see the outputs of quantized ones. search: AWQ's scales and clips.
    gptq: codes by GPTQ instead of rounding to nearest, on the scaled weights. refinement: what
    method "refined" does beyond that, None for the others."""

    formats: NumberFormats
    layout: Layout
    statistics_budget: int
    seed: int
    propagate_error: bool
    search: bool
    gptq: bool
    refinement: Effort | None = None

    @property
    def calibrated(self) -> bool:
        """True for methods that look at inputs; rounding to nearest looks at weights alone."""
        return self.search or self.gptq

    @property
    def two_streams(self) -> bool:
        """True where statistics are of the quantized blocks' stream beside the original's."""
        return self.refinement is not None and self.refinement.two_streams

    @property
    def propagates(self) -> bool:
        """True where later blocks depend on the outcome of earlier ones."""
        return self.propagate_error or self.two_streams


@dataclass(frozen=True)
class BlockTask:
    """A block, and all that its work depends on beside its tensors.

    model: names it in errors. obstacles: linears that stay in 16 bits, with the reason. storage:
    dtypes of the tensors in the new checkpoint, by name relative to the block.
    """

    model: str
    layer: int
    decoder: Decoder
    options: BlockOptions
    obstacles: Mapping[str, str]
    storage: Mapping[str, torch.dtype]

    @property
    def title(self) -> str:
        """Its name in messages and progress."""
        return f"block {self.layer}"

    @cached_property
    def groups(self) -> list[ScaleGroup]:
        """The scale groups in which something is quantized."""
        groups = self.decoder.scale_groups(self.layer)
        return [g for g in groups if any(name not in self.obstacles for name in g.linears)]

    @property
    def linears(self) -> tuple[str, ...]:
        """The linears as the checkpoint has them, in the order of execution."""
        return tuple(linear.name for linear in self.decoder.linears(self.layer))

    def pieces_of(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The linears that are made of these pieces of rows: of one, the linear itself."""
        return {name: (name,) for name in names}

    def linear_of(self, piece: str) -> str:
        """The name of the linear that a piece belongs to."""
        return piece

    @cached_property
    def inputs(self) -> dict[str, tuple[str, ...]]:
        """The distinct inputs, each with the linears that read it and are quantized."""
        readers = {}
        for name, linears in self.decoder.inputs(self.layer).items():
            if members := tuple(each for each in linears if each not in self.obstacles):
                readers[name] = members
        return readers

    @cached_property
    def input_of(self) -> dict[str, str]:
        """The name of the input that each quantized linear reads."""
        return {linear: name for name, linears in self.inputs.items() for linear in linears}

    def members(self, group: ScaleGroup) -> list[str]:
        """The linears of a group that are quantized."""
        return [name for name in group.linears if name not in self.obstacles]

    def number_format(self, linear: str) -> NumberFormat:
        """The number format of a linear that is quantized, or of a piece of one."""
        return self.options.formats.of(self.full_name(linear))

    def group_format(self, group: ScaleGroup) -> NumberFormat:
        """The one number format of a group's linears that are quantized."""
        (number_format,) = {self.number_format(name) for name in self.members(group)}
        return number_format

    def group_of(self, linear: str) -> ScaleGroup:
        """The scale group of a linear that is quantized."""
        return next(group for group in self.groups if linear in group.linears)

    @cached_property
    def stages(self) -> list[list[str]]:
        """The inputs in the order in which the block comes to them; those of all experts together.
        One stage with all of them where linears do not wait for those before them."""
        effort = self.options.refinement
        if effort is None or not (effort.two_streams and effort.sequential):
            return [list(self.inputs)]
        stages: dict[str, list[str]] = {}
        for group in self.groups:
            for source in self.members_by_input(group):
                stage = re.sub(r"\.\d+\b", "", self.inputs[source][0])
                stages.setdefault(stage, []).append(source)
        return list(stages.values())

    def members_by_input(self, group: ScaleGroup) -> dict[str, list[str]]:
        """The linears of a group that are quantized, by the input that they read."""
        members: dict[str, list[str]] = {}
        for name in self.members(group):
            members.setdefault(self.input_of[name], []).append(name)
        return members

    def batches(self, names: Sequence[str]) -> list[Sequence[str]]:
        """Linears that read one input, in batches whose rows GPTQ takes through the columns
        together: all of them."""
        return [names]

    def token_share(self, source: str) -> float:
        """The share of all tokens that reaches an input, if experts are equally busy."""
        return self.decoder.token_share(self.layer, source)

    def statistics_of(
        self, group: ScaleGroup, statistics: Mapping[str, Inputs]
    ) -> dict[str, Inputs]:
        """The statistics of the group's inputs."""
        names = (self.input_of[linear] for linear in self.members(group))
        return {name: statistics[name] for name in names}

    def unquantized(self, scales: Mapping[str, torch.Tensor]) -> list[str]:
        """The tensors that are stored in 16 bits, by name. scales: what was folded, by group."""
        quantized = {f"{name}.weight" for linears in self.inputs.values() for name in linears}
        return [name for name in self.storage if name not in quantized]

    def full_name(self, name: str) -> str:
        return f"{self.decoder.layer_prefix(self.layer)}.{name}"


@dataclass(frozen=True)
class OutputLayerTask(BlockTask):
    """The output layer, as if it were one more block: its input is what the final norm gives.

        hidden of the last block ─ final norm ─► statistics ─► scale, clips ─► fold, codes

    The inverse of its scale goes into the final norm, which nothing else reads: the fold is exact.
    A model without that norm, or with a projection after it (OPT 350M), gets clips alone. With
    tied embeddings the output layer becomes a weight of its own; the embedding stays as it is.

    Its weight is cut into pieces of rows, each a linear of one scale group: temporaries do not grow
    with the vocabulary.
    """

    @property
    def title(self) -> str:
        return "the output layer"

    @property
    def name(self) -> str:
        return self.decoder.architecture.lm_head

    @property
    def source(self) -> str:
        """The tensor that holds the weight: the embedding's where they are tied."""
        arch = self.decoder.architecture
        return f"{arch.embedding if self.decoder.tied_embeddings else arch.lm_head}.weight"

    @property
    def piece_rows(self) -> int:
        return max(1, _PIECE_VALUES // self.decoder.embedding_size)

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        return tuple(f"rows {i}" for i in range(-(-self.decoder.vocab_size // self.piece_rows)))

    @cached_property
    def groups(self) -> list[ScaleGroup]:
        decoder = self.decoder
        if not decoder.norm_first or decoder.has_projections:
            return [ScaleGroup(self.name, "none", None, self.pieces)]
        return [ScaleGroup(self.name, "norm", decoder.architecture.final_norm, self.pieces)]

    @property
    def linears(self) -> tuple[str, ...]:
        return (self.name,)

    def pieces_of(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        return {self.name: self.pieces}

    def linear_of(self, piece: str) -> str:
        return self.name

    @cached_property
    def inputs(self) -> dict[str, tuple[str, ...]]:
        return {self.name: self.pieces}

    @cached_property
    def stages(self) -> list[list[str]]:
        return [[self.name]]

    def batches(self, names: Sequence[str]) -> list[Sequence[str]]:
        return [[name] for name in names]

    def token_share(self, source: str) -> float:
        return 1.0

    def unquantized(self, scales: Mapping[str, torch.Tensor]) -> list[str]:
        return list(self.storage) if scales else []  # the final norm, where it was divided

    def full_name(self, name: str) -> str:
        return self.name if name in self.pieces else name


def block_task(checkpoint: Checkpoint, options: BlockOptions, layer: int) -> BlockTask:
    """The task of one block."""
    decoder = checkpoint.decoder
    prefix = decoder.layer_prefix(layer)
    return BlockTask(
        model=str(checkpoint.path),
        layer=layer,
        decoder=decoder,
        options=options,
        obstacles=obstacles(checkpoint, options.layout, options.formats, layer),
        storage={
            name: storage_dtype(checkpoint, f"{prefix}.{name}")
            for name in decoder.block_shapes(layer)
        },
    )


def output_layer_task(
    checkpoint: Checkpoint, options: BlockOptions, number_format: NumberFormat
) -> OutputLayerTask:
    """The task of the output layer. number_format: its own."""
    decoder = checkpoint.decoder
    norm = f"{decoder.architecture.final_norm}."
    return OutputLayerTask(
        model=str(checkpoint.path),
        layer=decoder.num_layers,
        decoder=decoder,
        options=replace(options, formats=NumberFormats(number_format)),
        obstacles={},
        storage={
            name: storage_dtype(checkpoint, name)
            for name in decoder.weight_shapes()
            if name.startswith(norm)
        },
    )


def obstacles(
    checkpoint: Checkpoint, layout: Layout, formats: NumberFormats, layer: int
) -> dict[str, str]:
    """Linears of a block that cannot be quantized, by name relative to it, each with the reason."""
    decoder, reasons = checkpoint.decoder, {}
    for linear in decoder.linears(layer):
        number_format = formats.of(f"{decoder.layer_prefix(layer)}.{linear.name}")
        reason = layout.obstacle(linear.out_features, linear.in_features, number_format)
        if reason is not None:
            reasons[linear.name] = reason
    return reasons
