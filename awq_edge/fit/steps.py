"""Verdicts of the steps behind a prediction: export, build, run, each by its own check."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from awq_edge.device.system_memory import SystemMemory
from awq_edge.errors import AwqEdgeError
from awq_edge.exporter.checks import check_context, check_model, check_recipe
from awq_edge.fit.device import DeviceFigures
from awq_edge.fit.report import StepPart
from awq_edge.model.archs import Decoder
from awq_edge.model.w4a16 import NumberFormat
from awq_edge.program.formats import Formats
from awq_edge.program.program import Quantized
from awq_edge.recipe.recipes import Recipe
from awq_edge.tensorrt.builder.memory import predict_build, shortage
from awq_edge.units import size_text


@dataclass(frozen=True)
class PlannedModel:
    """A checkpoint that a model would have: `awq_edge.exporter.checks.ExportedModel`, of one layer
    of each kind (see `Formats.layer_counts`). path: how messages call it."""

    path: Path
    decoder: Decoder
    formats: Formats

    @property
    def has_quantized(self) -> bool:
        return self.formats.main is not None

    def linear_names(self) -> list[str]:
        return list(self._planned)

    def is_quantized(self, name: str) -> bool:
        return self._format(name) is not None

    def linear_format(self, name: str) -> NumberFormat:
        quantized = self._format(name)
        assert quantized is not None
        return quantized.number_format

    def _format(self, name: str) -> Quantized | None:
        if name == self.decoder.architecture.lm_head:
            # One that an export rounds is not quantized before it.
            return self.formats.lm_head if self.formats.stored_lm_head else None
        return self._planned.get(name)  # None for a router

    @functools.cached_property
    def _planned(self) -> dict[str, Quantized | None]:
        decoder = self.decoder
        return {
            name: self.formats.blocks(name, linear.out_features, linear.in_features)
            for layer in self.formats.layer_counts(decoder)
            for linear in decoder.linears(layer)
            for name in [f"{decoder.layer_prefix(layer)}.{linear.name}"]
        }


def export_step(model: PlannedModel, recipe: Recipe, context: int) -> StepPart:
    """recipe: with the settings that were asked for."""
    try:
        check_recipe(recipe)
        check_model(model, recipe)
        check_context(model.decoder, context, str(model.path))
    except AwqEdgeError as error:
        return StepPart(step="export", takes_it=False, words=str(error))
    return StepPart(step="export", takes_it=True)


def build_step(weights: int, recipe: Recipe, device: DeviceFigures) -> StepPart | None:
    """None for a runtime without engines. weights: bytes of the bundle's.

    TensorRT builds on the board, which has one memory for all of it, and swap for a part of it;
    TensorRT for RTX on any x86-64 machine."""
    engine = recipe.runtime.record.engine
    if engine is None:
        return None
    needed = predict_build(weights, engine, recipe.runtime.workspace_bytes)
    if engine.ahead_of_time:
        words = f"{size_text(needed.total)} of memory, on any x86-64 machine"
        return StepPart(step="build", takes_it=True, words=words)
    system = SystemMemory(total=device.memory, available=device.usable)
    short = shortage(needed, system, unified=recipe.device.unified_memory)
    if short is None:
        return StepPart(step="build", takes_it=True, words=f"{size_text(needed.total)} of memory")
    if short.of_memory > 0:
        return StepPart(
            step="build",
            takes_it=False,
            words="the GPU's part of a build on the board needs "
            f"{size_text(needed.device)}, which no swap helps, and {size_text(device.usable)} are "
            "usable; take fewer --bits, a smaller model, or a recipe with a smaller "
            "runtime.workspace_bytes",
        )
    return StepPart(
        step="build",
        takes_it=True,
        swap_bytes=short.of_all,
        words=f"{size_text(needed.total)} of memory on the board, {size_text(short.of_all)} of it "
        "swap on a disk while it builds (docs/jetson.md)",
    )


def run_step(kv_dtype: str) -> StepPart:
    """The settings of a prediction that no session has yet; its memory is the verdict's."""
    if kv_dtype == "int8":
        return StepPart(
            step="run",
            takes_it=False,
            words="no runtime here makes an int8 KV cache yet; leave out --kv-dtype",
        )
    return StepPart(step="run", takes_it=True)
