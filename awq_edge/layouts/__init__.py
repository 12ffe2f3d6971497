"""Layouts: how the quantized weights of a checkpoint lie in its files. One file each, found by
import.

To add one: write `layouts/<name>.py` with a module constant LAYOUT. Nothing else changes.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from awq_edge.config_keys import ConfigKeys
from awq_edge.errors import ConfigError, ModelError
from awq_edge.input_files import show
from awq_edge.layouts.base import CheckpointFormats, Layout, StoredConfig

__all__ = [
    "CheckpointFormats",
    "Layout",
    "StoredConfig",
    "choose_layout",
    "layout_of_config",
    "layouts",
    "quantization_config",
]

_SHARED = {"base"}


@functools.cache
def layouts() -> dict[str, Layout]:
    """Every layout of this folder by the name that --format has for it."""
    found = {}
    for module_info in pkgutil.iter_modules(__path__):
        if module_info.name not in _SHARED:
            layout: Layout = importlib.import_module(f"{__name__}.{module_info.name}").LAYOUT
            found[layout.name] = layout
    return dict(sorted(found.items()))


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What config.json says of quantization, None for an unquantized model.

    Early llm-compressor wrote it as `compression_config`, at times one level down. Raises
    ModelError when it is no object.
    """
    keys = ConfigKeys(config)
    found = keys.table("quantization_config") or keys.table("compression_config")
    if found is None or not found.values:
        return None
    inner = found.table("quantization_config")
    return dict(found.values) if inner is None else {**found.values, **inner.values}


def layout_of_config(quantization: Mapping[str, Any], path: Path) -> Layout:
    """The layout of a quantization_config. Raises ModelError naming one that is not known."""
    method = quantization.get("quant_method")
    for layout in layouts().values():
        if method == layout.quant_method:
            return layout
    known = ", ".join(layout.description for layout in layouts().values())
    raise ModelError(
        f"{path}: quantization_config has quant_method {show(method)}; supported: {known} (export "
        "the unquantized model instead)"
    )


def choose_layout(name: str, bits: int) -> Layout:
    """The layout of a new checkpoint. name: "auto" is AutoAWQ's where that holds the bits, and
    compressed-tensors else. Raises ConfigError where the named one does not."""
    known = layouts()
    if name == "auto":
        return known["awq" if bits in known["awq"].bits else "compressed-tensors"]
    layout = known[name]
    if bits not in layout.bits:
        others = [other.name for other in known.values() if bits in other.bits]
        held = ", ".join(str(each) for each in layout.bits)
        raise ConfigError(
            f"--format {name} holds codes of {held} bits, not {bits}; give --format "
            f"{' or '.join(others)}, or --bits {held}"
        )
    return layout
