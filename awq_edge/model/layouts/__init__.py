"""Layouts: how the quantized weights of a checkpoint lie in its files. One file each, found by
import.

To add one: write `layouts/<name>.py` with a module constant LAYOUT; docs/formats.md.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from awq_edge.artifacts.config_keys import ConfigKeys
from awq_edge.errors import ConfigError
from awq_edge.model.files import QUANTIZATION_KEYS
from awq_edge.model.foreign_formats import of_config
from awq_edge.model.layouts.base import CheckpointFormats, Layout, StoredConfig

__all__ = [
    "CheckpointFormats",
    "Layout",
    "StoredConfig",
    "choose_layout",
    "layout_of_config",
    "layouts",
    "quantization_config",
    "without_quantization",
]

_SHARED = {"base"}


@functools.cache
def layouts() -> dict[str, Layout]:
    """Every layout of this folder by the name that --format has for it."""
    by_name = {}
    for module_info in pkgutil.iter_modules(__path__):
        if module_info.name not in _SHARED:
            layout: Layout = importlib.import_module(f"{__name__}.{module_info.name}").LAYOUT
            by_name[layout.name] = layout
    return dict(sorted(by_name.items()))


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The quantization settings of a config.json, None for an unquantized model.

    A vision-language model may have them in text_config, where transformers looks too. Early
    llm-compressor wrote them as `compression_config`, at times one level down; MLX calls them
    `quantization`. Raises ModelError when they are no object.
    """
    top = ConfigKeys(config)
    for keys in (top, top.table("text_config") or ConfigKeys({})):
        for key in QUANTIZATION_KEYS:
            table = keys.table(key)
            if table is not None and table.values:
                inner = table.table("quantization_config")
                return dict(table.values) if inner is None else {**table.values, **inner.values}
    return None


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without its quantization settings."""
    kept = {key: value for key, value in config.items() if key not in QUANTIZATION_KEYS}
    if isinstance(kept.get("text_config"), Mapping):
        kept["text_config"] = without_quantization(kept["text_config"])
    return kept


def layout_of_config(quantization: Mapping[str, Any], path: Path) -> Layout:
    """The layout of a quantization_config. Raises ModelError naming one that is not read here."""
    foreign = of_config(quantization)
    if foreign is not None:
        raise foreign.refusal(path)
    method = str(quantization.get("quant_method")).lower()
    by_method = {layout.quant_method: layout for layout in layouts().values()}
    return by_method.get(method, layouts()["awq"])  # what AutoRound packs as AutoAWQ is its layout


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
