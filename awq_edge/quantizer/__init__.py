"""From a model to an AWQ checkpoint. Needs the [host] extra."""

from __future__ import annotations

from awq_edge.quantizer.report import QuantizationReport
from awq_edge.quantizer.stage import QuantizedCheckpoint, quantize_checkpoint

__all__ = ["QuantizationReport", "QuantizedCheckpoint", "quantize_checkpoint"]
