"""Rounding a checkpoint to nearest, tensor by tensor: no calibration, no forward pass."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch

from awq_edge.checkpoint import Checkpoint
from awq_edge.layouts import Layout
from awq_edge.quantizer.block_work import Tensors
from awq_edge.quantizer.driver import QuantizedBlock, obstacles
from awq_edge.quantizer.nf4 import nf4_fake_quantize
from awq_edge.quantizer.output_layer import OutputLayer, quantize_output_layer
from awq_edge.quantizer.report import BlockReport, LinearReport, sqnr_db
from awq_edge.quantizer.rounding import (
    NumberFormat,
    Rounded,
    require_representable,
    round_to_nearest,
)
from awq_edge.quantizer.writer import quantized_tensors, require_finite, stored
from awq_edge.torch_tensors import read_float32


class RtnBlocks:
    """Round-to-nearest, without calibration: the baseline. Errors are those of the weights."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        layout: Layout,
        number_format: NumberFormat,
        device: torch.device,
    ) -> None:
        self._checkpoint = checkpoint
        self._layout = layout
        self._format = number_format
        self._device = device

    def skip(self, layer: int, kept: Tensors) -> None:
        """Nothing depends on earlier blocks."""

    def output_layer(self, number_format: NumberFormat) -> QuantizedBlock:
        """The output layer, as if it were one more block."""
        start = time.perf_counter()
        layer = OutputLayer(
            self._checkpoint,
            self._layout,
            number_format,
            search=False,
            gptq=False,
            seed=0,
            device=self._device,
        )
        outcome = quantize_output_layer(layer, None)
        report = BlockReport(
            layer=self._checkpoint.decoder.num_layers,
            seconds=time.perf_counter() - start,
            fold_change=None,
            sampled_inputs=(),
            linears=(outcome.report,),
        )
        return report.layer, outcome.tensors, report

    def quantize(self, layers: Iterable[int]) -> Iterator[QuantizedBlock]:
        """Layer, tensors as they are stored, by full name, and report of blocks."""
        for layer in layers:
            yield (layer, *self._block(layer))

    def _block(self, layer: int) -> tuple[Tensors, BlockReport]:
        start = time.perf_counter()
        decoder = self._checkpoint.decoder
        reasons = obstacles(self._checkpoint, self._layout, self._format, layer)
        linears = []
        found: Tensors = {}
        names = {f"{linear.name}.weight": linear.name for linear in decoder.linears(layer)}
        for relative in decoder.block_shapes(layer):
            full = f"{decoder.layer_prefix(layer)}.{relative}"
            tensor = read_float32(self._checkpoint.files, full, self._device)
            name = names.get(relative)
            if name is None:
                found[full] = stored(self._checkpoint, full, tensor)
            elif name in reasons:
                linears.append(LinearReport(name=name, quantized=False, reason=reasons[name]))
                found[full] = stored(self._checkpoint, full, tensor)
            else:
                rounded, report = self._linear(full, name, tensor)
                linear = full.removesuffix(".weight")
                found |= quantized_tensors(self._layout, linear, rounded, self._format)
                linears.append(report)
        return found, BlockReport(
            layer=layer,
            seconds=time.perf_counter() - start,
            fold_change=None,
            sampled_inputs=(),
            linears=tuple(linears),
        )

    def _linear(self, full: str, name: str, weight: torch.Tensor) -> tuple[Rounded, LinearReport]:
        require_finite(str(self._checkpoint.path), full, weight)
        require_representable(str(self._checkpoint.path), full, weight, self._format)
        rounded = round_to_nearest(weight, self._format)
        signal = max(float(weight.square().sum()), 1e-30)
        relative = float((rounded.dequantize() - weight).square().sum()) / signal
        nf4 = float((nf4_fake_quantize(weight) - weight).square().sum()) / signal
        return rounded, LinearReport(
            name=name,
            quantized=True,
            relative_mse=relative,
            sqnr_db=sqnr_db(relative),
            rtn_relative_mse=relative,
            rtn_sqnr_db=sqnr_db(relative),
            nf4_relative_mse=nf4,
            nf4_sqnr_db=sqnr_db(nf4),
        )
