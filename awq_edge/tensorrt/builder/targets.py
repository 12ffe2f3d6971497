"""The GPU architectures to build for, by runtime."""

from __future__ import annotations

import re
from collections.abc import Sequence

from awq_edge.artifacts.directories import Bundle
from awq_edge.device.cuda_driver import compute_capability
from awq_edge.errors import ConfigError, RuntimeUnavailableError
from awq_edge.recipe.recipes import Recipe
from awq_edge.recipe.runtimes import EngineKind, require_runtime, runtime_names, runtimes

# What TensorRT for RTX builds for without such a GPU: its ComputeCapability. (SM75 is here too.)
RTX_TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
# The oldest GPU that the kernels of the plugin compile for, and that TensorRT for RTX itself has
# 4-bit weights for ("Cannot compile for target(s) sm75, because the model contains HW-specific
# datatypes: int4", 1.7.1).
_OLDEST_4_BIT_SM = 80


def runtime_of(bundle: Bundle, requested: str | None) -> str:
    """The runtime to build for: the bundle's, or `requested`. Raises ConfigError."""
    exported = bundle.manifest.runtime
    buildable = [name for name in runtime_names() if runtimes()[name].engine is not None]
    if requested is not None and requested not in buildable:
        raise ConfigError(f"--runtime {requested}: engines are for {' or '.join(buildable)}")
    if exported not in buildable:
        raise ConfigError(
            f"{bundle.path} was exported for {exported}, which needs no engine; export the model "
            f"with --runtime {requested or 'tensorrt-rtx'} to build one"
        )
    return requested or exported


def engine_of(runtime: str) -> EngineKind:
    """The TensorRT of a runtime that has engines."""
    engine = require_runtime(runtime).engine
    assert engine is not None, runtime
    return engine


def sm_number(sm: str) -> int:
    """89 of "SM89"."""
    return int(sm.removeprefix("SM"))


def targets_of(
    bundle: Bundle, recipe: Recipe, runtime: str, requested: Sequence[str]
) -> tuple[str, ...]:
    """The architectures to build for, without repetition: "SM89", ...

    requested: of the command line; empty: the recipe's for TensorRT for RTX, this machine's for
    TensorRT. Raises ConfigError for what the runtime or the bundle is not for, and
    RuntimeUnavailableError where TensorRT has no GPU here.
    """
    names = tuple(dict.fromkeys(_normalized(name) for name in requested))
    if not engine_of(runtime).ahead_of_time:
        return (_this_machine(names),)
    if not names:
        names = (_of_recipe(recipe),)
    for name in names:
        # One that is here may be tried: TensorRT itself says whether it supports it.
        if name not in RTX_TARGETS and name != f"SM{compute_capability()}":
            raise ConfigError(
                f"{name}: TensorRT for RTX builds for {', '.join(RTX_TARGETS)}; give one with "
                "--target"
            )
        if sm_number(name) < _OLDEST_4_BIT_SM:
            _require_16_bit(bundle, name)
    return names


def _require_16_bit(bundle: Bundle, name: str) -> None:
    used = bundle.manifest.plugin
    if used is not None:
        problem = f"has plugin nodes ({', '.join(used.ops)})"
    elif bundle.manifest.method != "none":
        problem = "has quantized weights"
    else:
        return
    raise ConfigError(
        f"--target {name}: {bundle.path} {problem}, which need SM{_OLDEST_4_BIT_SM} or newer; "
        "export it with --method none --linear native --attention native"
    )


def _normalized(name: str) -> str:
    """ "SM89" of "sm89", "89", "8.9" and "sm_89". Raises ConfigError."""
    match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", name.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"--target {name}: must be an architecture such as SM89")
    return f"SM{match[1]}{match[2]}"


def _this_machine(requested: Sequence[str]) -> str:
    capability = compute_capability()
    if capability is None:
        raise RuntimeUnavailableError(
            "TensorRT builds engines on the device that runs them, and no NVIDIA GPU is found "
            "here; copy the bundle to the device and run `awq-edge build` there"
        )
    here = f"SM{capability}"
    if any(name != here for name in requested):
        raise ConfigError(
            f"--target {', '.join(requested)}: TensorRT builds for the GPU of this machine, "
            f"{here}; leave --target out, or build on the other device"
        )
    return here


def _of_recipe(recipe: Recipe) -> str:
    capability = recipe.device.compute_capability
    if capability is not None:
        return _normalized(capability)
    here = compute_capability()
    if here is None:
        raise ConfigError(
            f"recipe {recipe.name} names no GPU and there is none here; give --target SM86, SM89 "
            "or SM120"
        )
    return f"SM{here}"
