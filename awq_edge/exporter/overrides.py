"""Options that an already quantized checkpoint, or the runtime, contradicts."""

from __future__ import annotations

from pathlib import Path

from awq_edge.errors import ConfigError
from awq_edge.flags import FlagField, flag_fields
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.lm_head import UNQUANTIZED
from awq_edge.recipe.recipes import Recipe
from awq_edge.recipe.runtimes import runtimes

_STORED = ("method", "bits", "group_size", "scheme")
# Of no effect on what is quantized already.
_CALIBRATION = ("samples", "length", "seed", "propagate_error", "fit", "bits_per_weight")


def check_overrides(checkpoint: Checkpoint, recipe: Recipe, calibration: str | Path | None) -> None:
    """Raise ConfigError naming the first option that a quantized checkpoint contradicts: a number
    format or a method that it does not have, or a calibration, which has happened already."""
    quantization = checkpoint.quantization
    if quantization is None:
        return
    given = {field.name: field.typed(recipe.asked[field.key]) for field in _asked(recipe)}
    if calibration is not None:
        given["calibration"] = f"--calibration {calibration}"
    for name, option in given.items():
        remedy = f"leave it out, or quantize the original model with {option}"
        if name in ("calibration", *_CALIBRATION):
            raise ConfigError(f"{option}: {checkpoint.path} is quantized already; {remedy}")
        if name in _STORED and recipe.asked[f"quantization.{name}"] != getattr(quantization, name):
            raise ConfigError(
                f"{option} contradicts {checkpoint.path}, which is quantized with "
                f"{name.replace('_', ' ')} {getattr(quantization, name)}; {remedy}"
            )


def check_lm_head(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raise ConfigError for --lm-head-bits other than those of a quantized output layer."""
    lm_head = checkpoint.decoder.architecture.lm_head
    if not checkpoint.is_quantized(lm_head):
        return
    bits = checkpoint.linear_format(lm_head).bits
    asked = recipe.asked.get("quantization.lm_head_bits", bits)
    if asked != bits:
        raise ConfigError(
            f"--lm-head-bits {asked} contradicts {checkpoint.path}, whose {lm_head} is quantized "
            f"with bits {bits}; leave it out"
        )


def wanted_lm_head_bits(recipe: Recipe, checkpoint: Checkpoint) -> int:
    """Bits of an unquantized output layer, before it is known whether groups fit it."""
    if checkpoint.quantization is None and "quantization.lm_head_bits" not in recipe.asked:
        return UNQUANTIZED
    return recipe.quantization.lm_head_bits


def check_gguf_options(recipe: Recipe) -> None:
    """Raise ConfigError for an option of a runtime: a GGUF file has none."""
    for field in _asked(recipe):
        if field.key in ("quantization.fit", "quantization.bits_per_weight"):
            raise ConfigError(
                f"{field.typed(recipe.asked[field.key])} counts bytes as a runtime stores them, "
                "and a GGUF file has none; give --bits 4 or 8"
            )
        if field.key.startswith(("runtime.", "export.")):
            raise ConfigError(
                f"{field.typed(recipe.asked[field.key])} is for a bundle, and a GGUF file has no "
                "runtime; leave it out"
            )


def check_forms(recipe: Recipe) -> None:
    """Raise ConfigError for --linear or --attention with a runtime that has no choice of them."""
    if recipe.runtime.record.native is not None:
        return
    others = [name for name, record in sorted(runtimes().items()) if record.native is not None]
    for field in _asked(recipe):
        if field.name in ("linear", "attention"):
            raise ConfigError(
                f"{field.typed(recipe.asked[field.key])} is for the runtimes {' and '.join(others)}"
                f", and this is an export for {recipe.runtime.backend}; leave it out, or give "
                "another --recipe"
            )


def _asked(recipe: Recipe) -> list[FlagField]:
    return [field for field in flag_fields(Recipe) if field.key in recipe.asked]
