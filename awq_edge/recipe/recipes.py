"""Recipes: what a target device is and the defaults for it, read from `recipes/<device>.toml`.

A recipe may extend another (`extends = "name"`): tables are merged key by key, anything else is
replaced. Files whose name begins with `_` are parts that recipes share, not recipes.
docs/recipes.md describes every key.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from awq_edge._package import PACKAGE
from awq_edge.artifacts.input_files import read_toml
from awq_edge.artifacts.paths import user_path
from awq_edge.artifacts.schema import Record
from awq_edge.errors import ConfigError
from awq_edge.recipe.runtimes import Runtime, require_runtime, runtime_names, runtimes
from awq_edge.recipe.validation import describe_errors, dotted_keys, show, unknown_key
from awq_edge.units import format_bandwidth, format_size, parse_bandwidth, parse_size

__all__ = [
    "CalibrationDefaults",
    "Device",
    "ExportDefaults",
    "PowerMode",
    "QuantizationDefaults",
    "Recipe",
    "RuntimeSpec",
    "default_recipe",
    "list_recipes",
    "load_recipe",
    "recipe_folder",
    "recipe_keys",
    "recipe_names",
]

DETECT = "detect"  # stands in a recipe for a figure that is read from the machine
_MAX_EXTENDS = 8


def _version(text: str) -> str:
    if re.fullmatch(r"[0-9]+(\.[0-9]+)*", text) is None:
        raise ValueError('must be numbers and dots, such as "10.16"')
    return text


def _compute_capability(text: str) -> str:
    if re.fullmatch(r"[0-9]+\.[0-9]", text) is None:
        raise ValueError('must be MAJOR.MINOR, such as "8.7"')
    return text


def _backend(text: str) -> str:
    if text not in runtimes():
        raise ValueError(f"allowed values: {', '.join(map(repr, runtime_names()))}")
    return text


def _module(text: str) -> str:
    if re.fullmatch(r"p\d{4}-\d{4}", text) is None:
        raise ValueError('must be a part number, such as "p3767-0003"')
    return text


Version = Annotated[str, AfterValidator(_version)]
Module = Annotated[str, AfterValidator(_module)]
Size = Annotated[int, BeforeValidator(parse_size), PlainSerializer(format_size)]
Bandwidth = Annotated[
    int, BeforeValidator(parse_bandwidth), Field(gt=0), PlainSerializer(format_bandwidth)
]
DetectableSize = Annotated[
    int | None,
    BeforeValidator(lambda value: None if value == DETECT else parse_size(value)),
    PlainSerializer(lambda size: DETECT if size is None else format_size(size)),
]
DetectableBandwidth = Annotated[
    int | None,
    BeforeValidator(lambda value: None if value == DETECT else parse_bandwidth(value)),
    PlainSerializer(lambda rate: DETECT if rate is None else format_bandwidth(rate)),
]
PositiveInt = Annotated[int, Field(gt=0)]


class _Part(Record, strict=True):
    """A table of a recipe."""


class PowerMode(_Part):
    """One nvpmodel mode. watts: its power budget, None if it has none. memory_bandwidth: bytes/s,
    what the memory clock of this mode allows. default: the mode the device boots in."""

    name: str
    watts: PositiveInt | None = None
    memory_bandwidth: Bandwidth
    default: bool = False


class Device(_Part):
    """The hardware. memory_bytes: bytes installed. memory_bandwidth: bytes/s at the highest memory
    clock. system_reserved_bytes: bytes that the system keeps. None for the first two: detect.
    modules: part numbers of a Jetson's modules ("p3767-0003"), as /proc/device-tree/compatible has
    them. kind "cuda" is any NVIDIA GPU."""

    kind: Literal["cpu", "cuda", "jetson", "rtx"]
    compute_capability: Annotated[str, AfterValidator(_compute_capability)] | None = None
    sm_count: PositiveInt | None = None
    memory_bytes: DetectableSize
    memory_bandwidth: DetectableBandwidth
    unified_memory: bool
    system_reserved_bytes: Size
    power_modes: Annotated[tuple[PowerMode, ...], Field(strict=False)] = ()
    modules: Annotated[tuple[Module, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Device:
        if self.kind not in ("cpu", "cuda"):
            for key in ("compute_capability", "sm_count", "memory_bytes", "memory_bandwidth"):
                if getattr(self, key) is None:
                    raise ValueError(f'kind "{self.kind}" needs a figure for {key}')
        if self.memory_bytes is not None and self.system_reserved_bytes >= self.memory_bytes:
            raise ValueError(
                f"system_reserved_bytes ({format_size(self.system_reserved_bytes)}) leaves nothing "
                f"of memory_bytes ({format_size(self.memory_bytes)})"
            )
        names = [mode.name for mode in self.power_modes]
        if len(set(names)) != len(names):
            raise ValueError(f"power_modes: a name occurs twice in {', '.join(names)}")
        if names and sum(mode.default for mode in self.power_modes) != 1:
            raise ValueError(
                f"power_modes: exactly one of {', '.join(names)} must have default = true"
            )
        for mode in self.power_modes:
            if self.memory_bandwidth is not None and mode.memory_bandwidth > self.memory_bandwidth:
                raise ValueError(
                    f"power_modes: {mode.name} has {format_bandwidth(mode.memory_bandwidth)}, more "
                    f"than memory_bandwidth ({format_bandwidth(self.memory_bandwidth)})"
                )
        return self

    @property
    def usable_memory_bytes(self) -> int | None:
        """Bytes left for a model beside the system; None where memory is detected."""
        return None if self.memory_bytes is None else self.memory_bytes - self.system_reserved_bytes

    def power_mode(self, name: str | None = None) -> PowerMode | None:
        """The mode called `name`, or the default one; None for a device without modes.

        Raises ConfigError for a name that the device does not have.
        """
        for mode in self.power_modes:
            if mode.name == name or (name is None and mode.default):
                return mode
        if name is None:
            return None
        known = ", ".join(mode.name for mode in self.power_modes)
        allowed = f"allowed values: {known}" if known else "this device has no power modes"
        raise ConfigError(f'unknown power mode "{name}"; {allowed}')


class RuntimeSpec(_Part):
    """What executes the model. backend: the name of a runtime, see `awq_edge.recipe.runtimes`.
    version: of the backend. workspace_bytes: bytes that the TensorRT builder may use as scratch,
    None for its own choice. accuracy_level: of MatMulNBits."""

    backend: Annotated[str, AfterValidator(_backend)]
    version: Version
    cuda_version: Version | None = None
    jetpack: Literal["6.2", "7.2"] | None = None
    activation_dtype: Literal["float16", "bfloat16", "float32"]
    accuracy_level: Annotated[int, Field(ge=0, le=4)]
    workspace_bytes: Size | None = None

    @model_validator(mode="after")
    def _consistent(self) -> RuntimeSpec:
        if self.record.on_gpu and self.cuda_version is None:
            raise ValueError(
                f'backend "{self.backend}" needs cuda_version; recipes of GPUs have one'
            )
        return self

    @property
    def record(self) -> Runtime:
        """What the backend is."""
        return runtimes()[self.backend]


class QuantizationDefaults(_Part):
    """Defaults of `awq-edge quantize`. format: layout of the checkpoint, "auto" for AutoAWQ's where
    that holds the bits and compressed-tensors else. statistics_budget_bytes: bytes that the
    calibration statistics of one block may take before a token sample replaces the exact ones.
    propagate_error: later blocks are calibrated on the outputs of quantized ones."""

    method: Literal["none", "rtn", "awq", "gptq", "awq+gptq"]
    bits: Literal[2, 3, 4, 8]
    group_size: Literal[32, 64, 128]
    scheme: Literal["asymmetric", "symmetric"]
    lm_head_bits: Literal[4, 8, 16]
    propagate_error: bool
    format: Literal["auto", "awq", "compressed-tensors"]
    statistics_budget_bytes: Size


class ExportDefaults(_Part):
    """Defaults of `awq-edge export`. context: tokens that the KV cache holds. prefill_chunk: tokens
    of one prefill step. Both are clipped to what the model allows. linear, attention: for TensorRT,
    nodes of our plugin or TensorRT's own layers."""

    context: PositiveInt
    prefill_chunk: PositiveInt
    linear: Literal["plugin", "native"]
    attention: Literal["plugin", "native"]


class CalibrationDefaults(_Part):
    """Defaults of the calibration set: `samples` sequences of `length` tokens, drawn by `seed`."""

    samples: PositiveInt
    length: PositiveInt
    seed: Annotated[int, Field(ge=0)]


class Recipe(_Part):
    """A device with everything that is chosen for it. `model_dump_json` and `model_validate_json`
    are inverse to each other, quantities with their units."""

    name: str
    description: str
    device: Device
    runtime: RuntimeSpec
    quantization: QuantizationDefaults
    export: ExportDefaults
    calibration: CalibrationDefaults

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if (self.device.kind == "jetson") != (self.runtime.jetpack is not None):
            raise ValueError('runtime.jetpack belongs to recipes of kind "jetson", and only there')
        return self

    def overridden(self, overrides: Mapping[str, object]) -> Recipe:
        """This recipe with some keys replaced, validated as a file is: {"quantization.bits": 3}.

        Values have the types of TOML; quantities are texts with units. None means "as it was", so
        that flags that were not given can be passed on. Raises ConfigError.
        """
        data = self.model_dump(mode="json")
        known = [key for key in recipe_keys() if "[]" not in key and key != "extends"]
        for key, value in overrides.items():
            if key not in known:
                section = [k for k in known if k.partition(".")[0] == key.partition(".")[0]]
                text = unknown_key(key, section or known)
                raise ConfigError(f"override of recipe {self.name}: {text}")
            if value is not None:
                *path, last = key.split(".")
                table = data
                for part in path:
                    table = table[part]
                table[last] = value
        try:
            return Recipe.model_validate(data)
        except ValidationError as error:
            text = describe_errors(error, Recipe, list(Recipe.model_fields))
            raise ConfigError(f"override of recipe {self.name}: {text}") from None


_TOP_LEVEL = ["extends", *(key for key in Recipe.model_fields if key != "name")]


def recipe_folder() -> Path:
    """The folder of the recipes that come with the package."""
    installed = PACKAGE / "recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "recipes"


def recipe_keys() -> list[str]:
    """Every key that a recipe file may set, dotted; those of tables in a list: `list[].key`."""
    return ["extends", *(key for key in dotted_keys(Recipe) if key != "name")]


def load_recipe(name_or_path: str | os.PathLike[str]) -> Recipe:
    """The recipe of a packaged name ("jetson-orin-nano-8gb") or of a path that ends in .toml.

    Raises ConfigError: unknown name, unreadable file, unknown key, wrong value or unit, or an
    `extends` that leads nowhere or in a circle.
    """
    path = _locate(os.fspath(name_or_path), None)
    chain = _read_chain(path)
    merged: dict[str, Any] = {}
    for _, data in reversed(chain):
        merged = _merge(merged, data)
    if "name" in merged:  # the file's name is the recipe's
        raise ConfigError(f"{_origin(chain, ('name',))}: {unknown_key('name', _TOP_LEVEL)}")
    try:
        return Recipe.model_validate({**merged, "name": path.stem})
    except ValidationError as error:
        origin = _origin(chain, error.errors()[0]["loc"])
        raise ConfigError(f"{origin}: {describe_errors(error, Recipe, _TOP_LEVEL)}") from None


def default_recipe(runtime: str | None) -> Recipe:
    """The recipe where none was named. runtime: None for a CPU's. Raises ConfigError for a runtime
    that there is not."""
    return load_recipe("cpu" if runtime is None else require_runtime(runtime).recipe)


def list_recipes() -> list[Recipe]:
    """Every packaged recipe, in the natural order of the names (8gb before 16gb)."""
    return [load_recipe(name) for name in recipe_names()]


def recipe_names() -> list[str]:
    """Names of the packaged recipes, numbers in them compared as numbers."""
    names = [path.stem for path in recipe_folder().glob("*.toml") if path.name[0] != "_"]
    return sorted(names, key=lambda name: re.sub(r"\d+", lambda digits: digits[0].zfill(9), name))


def _locate(name: str, near: Path | None) -> Path:
    """The file of a recipe's name or path. near: the file that extends it, searched beside."""
    if name.endswith(".toml"):
        path = (near.parent if near else Path()) / user_path(name, "--recipe")
        if not path.is_file():
            raise ConfigError(f"no recipe file at {path}")
        return path
    beside = near.with_name(f"{name}.toml") if near and name == Path(name).name else None
    if near and beside and beside.is_file() and not beside.samefile(near):
        return beside
    path = recipe_folder() / f"{name}.toml"
    if name == Path(name).name and path.is_file():
        return path
    close = difflib.get_close_matches(name, recipe_names(), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    source = f"{near}: extends: " if near else ""
    raise ConfigError(
        f'{source}unknown recipe "{name}"; {hint}`awq-edge recipes` lists them, and a path must '
        "end in .toml"
    )


def _read_chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file and what it extends, nearest first, `extends` removed."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    following: Path | None = path
    while following is not None:
        if any(following.samefile(seen) for seen, _ in chain):
            circle = " -> ".join([*(seen.stem for seen, _ in chain), following.stem])
            raise ConfigError(f"{path}: extends goes in a circle: {circle}")
        if len(chain) > _MAX_EXTENDS:
            raise ConfigError(f"{path}: extends is more than {_MAX_EXTENDS} recipes deep")
        data = read_toml(following, error=ConfigError)
        parent = data.pop("extends", None)
        chain.append((following, data))
        if parent is not None and not isinstance(parent, str):
            raise ConfigError(
                f'{following}: key "extends" is {show(parent)}; must be the name of a recipe in '
                "quotes"
            )
        following = None if parent is None else _locate(parent, following)
    return chain


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merge(old, value)
        merged[key] = value
    return merged


def _origin(chain: list[tuple[Path, dict[str, Any]]], loc: tuple[int | str, ...]) -> Path:
    """The file of the chain that sets the key at `loc`; the first one if none does."""
    for path, data in chain:
        value: Any = data
        for part in loc:
            value = value.get(part) if isinstance(value, dict) else None
            if value is None or isinstance(value, list):
                break
        if value is not None:
            return path
    return chain[0][0]
