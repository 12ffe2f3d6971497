"""The inputs of a quantization, checked."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import cast, get_args

from awq_edge.errors import ConfigError, ModelError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer.report.schema import Method


def known_method(method: str) -> Method:
    """The name of a method. Raises ConfigError for none, which quantizes nothing."""
    for known in get_args(Method):
        if method == known:
            return cast(Method, known)
    raise ConfigError(
        f"method {method}: there is nothing to quantize; export the model as it is with "
        f"`awq-edge export MODEL --method none`, or give --method {', '.join(get_args(Method))}"
    )


def open_unquantized(model: Path) -> Checkpoint:
    """A model directory. Raises ModelError for one that is quantized already."""
    checkpoint = Checkpoint.open(model)
    if checkpoint.quantization is not None:
        raise ModelError(
            f"{model} is quantized already ({checkpoint.quantization.bits}-bit "
            f"{checkpoint.quantization.method}); export it as it is with `awq-edge export "
            f"{shlex.quote(str(model))}`"
        )
    return checkpoint
