"""Recipes: facts of a target device and defaults for it, read from `recipes/<device>.toml`.

A recipe may extend another (`extends = "name"`): tables are merged key by key, anything else is
replaced. A field with a `Flag` can be given by itself too, to `load_recipe` and as an option of
the commands. docs/recipes.md describes every key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from awq_edge.errors import ConfigError
from awq_edge.flags import Flag, FlagField, flag_fields
from awq_edge.recipe.device import Device, Part, PositiveInt, PowerMode, Size
from awq_edge.recipe.files import locate, merge, origin, read_chain, recipe_names
from awq_edge.recipe.runtimes import Runtime, require_runtime, runtime_names, runtimes
from awq_edge.recipe.validation import describe_errors, dotted_keys, unknown_key

__all__ = [
    "CalibrationDefaults",
    "Device",
    "ExportDefaults",
    "PowerMode",
    "QuantizationDefaults",
    "Recipe",
    "RuntimeSpec",
    "command_fields",
    "list_recipes",
    "load_recipe",
    "recipe_keys",
]

# What a command lets a person give, by section or key.
_COMMANDS = {
    "quantize": ("quantization", "calibration", "export.context"),
    "export": ("runtime", "export", "quantization", "calibration"),
    "fit": (
        *("runtime.backend", "runtime.activation_dtype", "export.context"),
        *("quantization.group_size", "quantization.scheme", "quantization.lm_head_bits"),
    ),
}
# An export chooses the layout of the checkpoint between by itself.
_NOT_OF = {"export": ("quantization.format",)}


def _version(text: str) -> str:
    if re.fullmatch(r"[0-9]+(\.[0-9]+)*", text) is None:
        raise ValueError('must be numbers and dots, such as "10.16"')
    return text


def _backend(text: str) -> str:
    if text not in runtimes():
        raise ValueError(f"allowed values: {', '.join(map(repr, runtime_names()))}")
    return text


Version = Annotated[str, AfterValidator(_version)]


class RuntimeSpec(Part):
    """The runtime of a model. backend: the name of a runtime, see `awq_edge.recipe.runtimes`.
    version: of the backend. workspace_bytes: bytes that the TensorRT builder may use as scratch,
    None for its own choice."""

    backend: Annotated[
        str,
        AfterValidator(_backend),
        Flag(f"Runtime of the bundle: {', '.join(runtime_names())}", name="runtime"),
    ]
    version: Version
    cuda_version: Version | None = None
    jetpack: Literal["6.2", "7.2"] | None = None
    activation_dtype: Annotated[
        Literal["float16", "bfloat16", "float32"],
        Flag("Type of the activations: {} (bfloat16 for cuda, float32 for onnxruntime alone)"),
    ]
    accuracy_level: Annotated[
        int,
        Field(ge=0, le=4),
        Flag(
            "onnxruntime's MatMulNBits: 0 computes in the activations' type, 4 in int8, some three "
            "times as fast"
        ),
    ]
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
        """The backend's record."""
        return runtimes()[self.backend]


class QuantizationDefaults(Part):
    """Defaults of `awq-edge quantize`. format "auto" is AutoAWQ's where that holds the bits, and
    compressed-tensors else. fit, bits_per_weight: a budget of bytes, which chooses bits and groups
    for each linear in the place of one for all. statistics_budget_bytes: bytes that the calibration
    statistics of one block may take before a token sample replaces the exact ones."""

    method: Annotated[
        Literal["none", "rtn", "awq", "gptq", "awq+gptq", "refined"],
        Flag("How weights are rounded: {}; rtn is to nearest, none leaves them as they are"),
    ]
    effort: Annotated[
        Literal["fast", "default", "best"],
        Flag("Time that method refined takes: {}"),
    ]
    bits: Annotated[Literal[2, 3, 4, 8], Flag("Bits of a weight")]
    group_size: Annotated[Literal[32, 64, 128], Flag("Input channels that share a scale")]
    scheme: Annotated[Literal["asymmetric", "symmetric"], Flag("With zero points or without")]
    lm_head_bits: Annotated[
        Literal[4, 8, 16], Flag("Bits of the output layer: {}; 16 with --method none unless given")
    ]
    propagate_error: Annotated[
        bool, Flag("Calibrate later blocks on the outputs of quantized ones")
    ]
    format: Annotated[
        Literal["auto", "awq", "compressed-tensors"],
        Flag("Layout of the checkpoint: {}; awq is AutoAWQ's gemm, for 4 bits"),
    ]
    fit: Annotated[
        str | None,
        Flag(
            "Choose bits and groups for each linear so that the model fits this device, a recipe, "
            "with --context tokens"
        ),
    ] = None
    bits_per_weight: Annotated[
        float | None,
        Field(gt=1, le=16),
        Flag(
            "Choose them so that a weight takes so many bits as the runtime stores it, scales and "
            "zero points included"
        ),
    ] = None
    statistics_budget_bytes: Size


class ExportDefaults(Part):
    """Defaults of `awq-edge export`. prefill_chunk: tokens of one prefill step. It and the context
    are clipped to what the model allows."""

    context: Annotated[PositiveInt, Flag("Tokens of the KV cache, at most the model's")]
    prefill_chunk: PositiveInt
    linear: Annotated[
        Literal["plugin", "native"],
        Flag("TensorRT, linears: {}; TensorRT's own INT4 layers take symmetric weights only"),
    ]
    attention: Annotated[
        Literal["plugin", "native"],
        Flag("TensorRT, attention: {}; this project's kernels or TensorRT's layers"),
    ]


class CalibrationDefaults(Part):
    """Defaults of the calibration set: `samples` sequences of `length` tokens, drawn by `seed`."""

    samples: Annotated[PositiveInt, Flag("Calibration sequences")]
    length: Annotated[PositiveInt, Flag("Tokens of one sequence")]
    seed: Annotated[int, Field(ge=0), Flag("Draws the sequences")]


class Recipe(Part):
    """A device with everything that is chosen for it. `model_dump_json` and `model_validate_json`
    are inverse to each other, quantities with their units; what was asked for is in neither."""

    _asked: dict[str, object] = PrivateAttr(default_factory=dict)
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

    @property
    def asked(self) -> Mapping[str, object]:
        """Keys that a person asked for on top of the recipe, with their values."""
        return self._asked

    def asking(self, **options: object) -> Recipe:
        """The recipe with options replaced, by the names that they have in the commands:
        `asking(bits=3, group_size=64)`. None: as it was. Raises ConfigError."""
        keys = {field.name: field.key for field in flag_fields(Recipe)}
        for name in options:
            if name not in keys:
                text = unknown_key(name, list(keys), "option")
                raise ConfigError(f"recipe {self.name}: {text}")
        if options.get("runtime") is not None:
            require_runtime(str(options["runtime"]))  # before it is asked what such a one needs
        if options.get("fit") is not None:
            _require_recipe("--fit", str(options["fit"]))
        return self.overridden({keys[name]: value for name, value in options.items()})

    def overridden(self, overrides: Mapping[str, object]) -> Recipe:
        """The recipe with keys replaced, and remembered as asked for: {"quantization.bits": 3}.

        Values have the types of TOML; quantities are texts with units. None means "as it was".
        Validated as a file is. Raises ConfigError.
        """
        changed = self.resolved(overrides)
        changed._asked |= {key: value for key, value in overrides.items() if value is not None}
        return changed

    def resolved(self, values: Mapping[str, object]) -> Recipe:
        """The recipe with keys that a model or another choice decides; nobody has asked for them.
        As `overridden` otherwise."""
        data = self.model_dump(mode="json")
        known = [key for key in recipe_keys() if "[]" not in key and key != "extends"]
        for key, value in values.items():
            if key not in known:
                section = [k for k in known if k.partition(".")[0] == key.partition(".")[0]]
                text = unknown_key(key, section or known)
                raise ConfigError(f"recipe {self.name}: {text}")
            if value is not None:
                *path, last = key.split(".")
                table = data
                for part in path:
                    table = table[part]
                table[last] = value
        try:
            changed = Recipe.model_validate(data)
        except ValidationError as error:
            typed = {
                field.key: field.typed(values[field.key])
                for field in flag_fields(Recipe)
                if values.get(field.key) is not None
            }
            text = describe_errors(error, Recipe, list(Recipe.model_fields), typed)
            raise ConfigError(text if typed else f"recipe {self.name}: {text}") from None
        changed._asked = dict(self._asked)
        return changed


def _require_recipe(option: str, name: str) -> None:
    try:
        locate(name, None)
    except ConfigError as error:
        raise ConfigError(f"{option} {name}: {error}") from None


_TOP_LEVEL = ["extends", *(key for key in Recipe.model_fields if key != "name")]


def recipe_keys() -> list[str]:
    """Every key that a recipe file may set, dotted; those of tables in a list: `list[].key`."""
    return ["extends", *(key for key in dotted_keys(Recipe) if key != "name")]


def command_fields(command: str) -> list[FlagField]:
    """Fields that a person may give to a command: quantize, export or fit."""
    chosen, left_out = _COMMANDS[command], _NOT_OF.get(command, ())
    return [
        field
        for field in flag_fields(Recipe)
        if field.key not in left_out and (field.key in chosen or field.key.split(".")[0] in chosen)
    ]


def load_recipe(name_or_path: str | os.PathLike[str] | None = None, **options: object) -> Recipe:
    """The recipe of a packaged name ("jetson-orin-nano-8gb") or of a path that ends in .toml.

    None: the recipe of the option `fit` or `runtime`, or that of a CPU. options: asked for
    on top of it, see `Recipe.asking`: `load_recipe("cpu", bits=3, group_size=64)`.
    Raises ConfigError: unknown name, unreadable file, unknown key or option, wrong value or unit,
    or an `extends` that leads nowhere or in a circle.
    """
    if name_or_path is None:
        runtime, device = options.get("runtime"), options.get("fit")
        name_or_path = "cpu" if runtime is None else require_runtime(str(runtime)).recipe
        if device is not None:
            _require_recipe("--fit", str(device))
            name_or_path = str(device)
    path = locate(os.fspath(name_or_path), None)
    chain = read_chain(path)
    merged: dict[str, Any] = {}
    for _, data in reversed(chain):
        merged = merge(merged, data)
    if "name" in merged:  # the file's name is the recipe's
        raise ConfigError(f"{origin(chain, ('name',))}: {unknown_key('name', _TOP_LEVEL)}")
    try:
        recipe = Recipe.model_validate({**merged, "name": path.stem})
    except ValidationError as error:
        file = origin(chain, error.errors()[0]["loc"])
        raise ConfigError(f"{file}: {describe_errors(error, Recipe, _TOP_LEVEL)}") from None
    return recipe.asking(**options) if options else recipe


def list_recipes() -> list[Recipe]:
    """Every packaged recipe, in the natural order of the names (8gb before 16gb)."""
    return [load_recipe(name) for name in recipe_names()]
