"""Limits of TensorRT and TensorRT for RTX."""

from __future__ import annotations

from awq_edge.errors import ConfigError, ModelError
from awq_edge.exporter.checks import (
    ExportedModel,
    packing_problems,
    quantizable,
)
from awq_edge.model.lm_head import LM_HEAD_SCHEMES, UNQUANTIZED, rounded_bits
from awq_edge.recipe.recipes import Recipe
from awq_edge.recipe.runtimes.tensorrt import FIRST_WITH_LAYERS, OLDEST_VERSION
from awq_edge.tensorrt.contract import CACHED_ATTENTION
from awq_edge.units import release

DECOMPOSED_OPSET = 17  # of graphs for what is older than the first with layers
_RTX_MAJOR = 1


def check(recipe: Recipe, model: ExportedModel | None) -> None:
    """Raise ConfigError for versions that no graph is made for; ModelError for sizes and number
    formats that no node exists for."""
    _check_version(recipe)
    if model is not None:
        _check_nodes(recipe, model)


def check_rtx(recipe: Recipe, model: ExportedModel | None) -> None:
    """The checks of `check`, for TensorRT for RTX."""
    if release(recipe.runtime.version, None)[0] != _RTX_MAJOR:
        raise ConfigError(
            f"recipe {recipe.name} has version {recipe.runtime.version} of runtime "
            f"{recipe.runtime.backend}, which is not one of TensorRT for RTX; take a recipe of an "
            "RTX device"
        )
    if model is not None:
        _check_nodes(recipe, model)


def _check_nodes(recipe: Recipe, model: ExportedModel) -> None:
    if recipe.export.linear == "plugin":
        remedy = "; give --linear native, or quantize the original model again"
        problems = [f"{each}{remedy}" for each in packing_problems(model)]
    else:
        problems = _native_linear_problems(model, recipe)
    sizes = next(a.choices for a in CACHED_ATTENTION.attributes if a.name == "head_size")
    size = model.decoder.head_size
    if recipe.export.attention == "plugin" and size not in sizes:
        known = ", ".join(map(str, sizes))
        problems.append(
            f"head size {size} is not one of {known}, which the plugin has; give --attention native"
        )
    if problems:
        raise ModelError(
            f"{model.path}: runtime {recipe.runtime.backend} cannot execute it: "
            f"{'; '.join(problems)}"
        )


def _check_version(recipe: Recipe) -> None:
    version = recipe.runtime.version
    if release(version, None) < release(OLDEST_VERSION, None):
        raise ConfigError(
            f"recipe {recipe.name} has version {version} of runtime tensorrt; graphs are made for "
            f"{OLDEST_VERSION} and newer: take a recipe of a Jetson, or write one with the "
            "TensorRT that the target has"
        )
    if (
        recipe.runtime.record.decomposes(recipe.runtime.version)
        and recipe.export.linear == "native"
    ):
        raise ConfigError(
            f"--linear native needs TensorRT {FIRST_WITH_LAYERS}, recipe {recipe.name} has "
            f"{version}: the graph for it is opset {DECOMPOSED_OPSET}, whose DequantizeLinear has "
            "no groups; give --linear plugin"
        )


def _native_linear_problems(model: ExportedModel, recipe: Recipe) -> list[str]:
    """TensorRT's DequantizeLinear has no zero points."""
    reason = "TensorRT's INT4 layers have no zero points"
    if not model.has_quantized:
        if recipe.quantization.method == "none":
            return []
        if recipe.quantization.scheme == "asymmetric":
            return [f"--linear native needs symmetric weights, {reason}; give --scheme symmetric"]
        return []  # lm_head is quantized with the blocks then
    for name in quantizable(model):
        if model.is_quantized(name) and model.linear_format(name).scheme == "asymmetric":
            return [f"--linear native needs symmetric weights, {reason}, and {name} is "
                    "asymmetric; quantize the original model with --scheme symmetric, or give "
                    "--linear plugin"]  # fmt: skip
    decoder = model.decoder
    bits = rounded_bits(decoder.embedding_size, recipe.quantization.lm_head_bits)
    is_rounded = not model.is_quantized(decoder.architecture.lm_head)
    if is_rounded and bits != UNQUANTIZED and LM_HEAD_SCHEMES[bits] == "asymmetric":
        return [f"--linear native needs symmetric weights, {reason}, and an lm_head of {bits} bits "
                "is asymmetric; give --lm-head-bits 8"]  # fmt: skip
    return []
