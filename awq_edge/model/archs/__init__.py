"""Architectures, one file per model_type, found by import.

To add one: write `archs/<model_type>.py` with a module constant ARCHITECTURE, and let
`scripts/config_keys.py` list the keys of its configuration.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from awq_edge.artifacts.input_files import show
from awq_edge.errors import ModelError
from awq_edge.model.archs.base import Architecture, Config, Experts, Linear, Rope, ScaleGroup
from awq_edge.model.archs.decoder import Decoder, MixtureOfExperts
from awq_edge.model.archs.known_keys import refuse_doubtful
from awq_edge.model.archs.vision import ImageTokens, Tower, Vision

__all__ = [
    "Architecture",
    "Config",
    "Decoder",
    "Experts",
    "ImageTokens",
    "Linear",
    "MixtureOfExperts",
    "Rope",
    "ScaleGroup",
    "Tower",
    "Vision",
    "architectures",
    "decoder_from_config",
    "require_known_keys",
]

_SHARED = {"base", "config", "decoder", "known_keys", "llama_cpp", "rotary", "vision"}


@functools.cache
def architectures() -> dict[str, Architecture]:
    """Every architecture of this folder by model_type."""
    by_type = {}
    for module_info in pkgutil.iter_modules(__path__):
        if module_info.name in _SHARED:
            continue
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        architecture: Architecture = module.ARCHITECTURE
        by_type[architecture.model_type] = architecture
    return dict(sorted(by_type.items()))


def decoder_from_config(config: Config) -> Decoder:
    """The resolved decoder of a config.json.

    Raises ModelError when its model_type is unknown, listing those that are known.
    """
    model_type = config.get("model_type")
    architecture = architectures().get(model_type) if isinstance(model_type, str) else None
    if architecture is None:
        raise ModelError(
            f"config.json: model_type {show(model_type)} is not supported; supported: "
            f"{', '.join(architectures())} (docs/add-an-architecture.md says how to add one)"
        )
    return architecture.decoder(config)


def require_known_keys(config: Config, source: object, *, allow: bool = False) -> None:
    """Raise ModelError where config.json has keys that a newer transformers may act on
    (`known_keys`).

    allow: of --allow-unknown-keys, which ignores them. A model that has no decoder here is not
    judged: whoever needs the decoder says why.
    """
    if allow:
        return
    try:
        decoder = decoder_from_config(config)
    except ModelError:
        return
    refuse_doubtful(decoder, source)
