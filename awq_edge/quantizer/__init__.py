"""From a model to an AWQ checkpoint. Needs the [host] extra; `quantizer.report` alone does not."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from awq_edge.quantizer.report.schema import QuantizationReport

if TYPE_CHECKING:
    from awq_edge.quantizer.stage import QuantizedCheckpoint, quantize_checkpoint

__all__ = ["QuantizationReport", "QuantizedCheckpoint", "quantize_checkpoint"]

_OF_THE_STAGE = ("QuantizedCheckpoint", "quantize_checkpoint")


def __getattr__(name: str) -> Any:
    if name not in _OF_THE_STAGE:
        raise AttributeError(f"module 'awq_edge.quantizer' has no attribute '{name}'")
    return getattr(importlib.import_module("awq_edge.quantizer.stage"), name)
