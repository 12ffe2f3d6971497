"""Flags that an already quantized checkpoint, or the runtime, contradicts."""

from __future__ import annotations

from collections.abc import Mapping

from awq_edge.errors import ConfigError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.recipe.runtimes import require_runtime, runtimes

# Of no effect on what is quantized already.
_CALIBRATION = ("calibration", "samples", "length", "seed", "propagate_error")


def check_overrides(checkpoint: Checkpoint, overrides: Mapping[str, object]) -> None:
    """Raise ConfigError naming the first override that a quantized checkpoint contradicts.

    overrides: by parameter name ("group_size"); None means not given. Keys: method, bits,
    group_size, scheme, and those of the calibration, which has happened already.
    """
    quantization = checkpoint.quantization
    if quantization is None:
        return
    stored = {
        "method": quantization.method,
        "bits": quantization.bits,
        "group_size": quantization.group_size,
        "scheme": quantization.scheme,
    }
    for key, value in overrides.items():
        if value is None:
            continue
        flag = _flag(key, value)
        remedy = f"leave it out, or quantize the original model with {flag}"
        if key in _CALIBRATION:
            raise ConfigError(f"{flag}: {checkpoint.path} is quantized already; {remedy}")
        if value != stored[key]:
            raise ConfigError(
                f"{flag} contradicts {checkpoint.path}, which is quantized with "
                f"{key.replace('_', ' ')} {stored[key]}; {remedy}"
            )


def check_forms(runtime: str, **forms: str | None) -> None:
    """Raise ConfigError for --linear or --attention with a runtime that has no choice of them."""
    if require_runtime(runtime).native is not None:
        return
    others = [name for name, record in sorted(runtimes().items()) if record.native is not None]
    for key, value in forms.items():
        if value is not None:
            raise ConfigError(
                f"{_flag(key, value)} is for the runtimes {' and '.join(others)}, and this is an "
                f"export for {runtime}; leave it out, or give another --recipe"
            )


def _flag(key: str, value: object) -> str:
    """As it was typed: --group-size 64, --no-propagate-error."""
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {value}"
