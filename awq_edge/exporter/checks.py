"""What each runtime cannot execute: asked before an export, and by `fit` before a model is there.

    recipe    types of activations, versions
    model     what its blocks have beyond Llama's, sizes of heads, groups and zero points of weights

One list of checks for both, which needs no package of the exporter's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from awq_edge.errors import ConfigError, ModelError
from awq_edge.kernels.interface import GROUP_SIZES, HEAD_SIZES
from awq_edge.model.archs import Decoder
from awq_edge.model.lm_head import LM_HEAD_SCHEMES, UNQUANTIZED, rounded_bits
from awq_edge.model.w4a16 import NumberFormat
from awq_edge.recipe.recipes import Recipe
from awq_edge.tensorrt.contract import CACHED_ATTENTION

# Types of activations by runtime; TensorRT's own layers take float32 too.
DTYPES: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("float16", "float32"),
    "cuda": ("float16", "bfloat16"),
    "tensorrt": ("float16", "bfloat16"),
    "tensorrt-rtx": ("float16", "bfloat16"),
}
_NATIVE_DTYPES = (*DTYPES["tensorrt"], "float32")
# The first TensorRT with RMSNormalization, RotaryEmbedding and TensorScatter, and the oldest that
# graphs are made for (JetPack 6.2's).
FIRST_WITH_LAYERS, OLDEST_TENSORRT = "10.15", "10.3"
DECOMPOSED_OPSET = 17  # of graphs for what is older than the first
_VECTOR = 8  # activations that the kernels load at a time
# "head_size must be a multiple of 8": GroupQueryAttention of onnxruntime 1.32, when it runs.
_ONNXRUNTIME_HEAD_MULTIPLE = 8


class ExportedModel(Protocol):
    """A checkpoint, or what one would be. has_quantized: some of its linears are."""

    @property
    def path(self) -> Path: ...
    @property
    def decoder(self) -> Decoder: ...
    @property
    def has_quantized(self) -> bool: ...

    def linear_names(self) -> Iterable[str]:
        """Full names of the linears of blocks; one layer of each kind is enough."""

    def is_quantized(self, name: str) -> bool: ...
    def linear_format(self, name: str) -> NumberFormat: ...


def beyond_llama(decoder: Decoder) -> tuple[str, ...]:
    """What a model has, in words, that blocks like Llama's do not: those of llama, mistral, qwen2
    and qwen3, with biases, norms of heads and windows."""
    arch = decoder.architecture
    is_fused = len(arch.qkv) == 1 or (arch.gated and len(arch.mlp_in) == 1)
    has_post_norm = arch.attention_post_norm is not None or arch.mlp_post_norm is not None
    has_softcap = decoder.attention_softcap is not None or decoder.logits_softcap is not None
    has_local_rope = any(decoder.windows) and decoder.rope != decoder.local_rope
    found = {
        "a vision tower": decoder.images is not None,
        "experts": decoder.moe is not None,
        "fused projections": is_fused,
        "an MLP without a gate": not arch.gated,
        f"the activation {decoder.activation}": decoder.activation != "silu",
        "LayerNorm": arch.norm_kind == "layer",
        "norms with an offset": arch.norm_kind == "rms_offset",
        "norms behind attention and MLP": has_post_norm,
        "norms after the residual sums": not decoder.norm_first,
        "soft caps": has_softcap,
        "scaled embeddings": decoder.embedding_scale != 1.0,
        "projected embeddings": decoder.has_projections,
        "learned positions": arch.positions is not None,
        "longrope": decoder.rope.kind == "longrope",
        "a rotary embedding of its own for layers with a window": has_local_rope,
    }
    return tuple(what for what, is_there in found.items() if is_there)


def check_recipe(recipe: Recipe) -> None:
    """Raise ConfigError for what the recipe's runtime cannot execute of any model."""
    runtime = recipe.runtime.backend
    if runtime == "tensorrt":
        _check_tensorrt_version(recipe)
    if runtime == "tensorrt-rtx" and recipe.runtime.version.partition(".")[0] != "1":
        raise ConfigError(
            f"recipe {recipe.name} has version {recipe.runtime.version} of runtime {runtime}, "
            "which is not one of TensorRT for RTX; take a recipe of an RTX device"
        )


def activation_dtypes(recipe: Recipe) -> tuple[str, ...]:
    """The types of activations that the recipe's runtime has kernels or layers for."""
    native = (recipe.export.linear, recipe.export.attention) == ("native", "native")
    if recipe.runtime.backend.startswith("tensorrt") and native:
        return _NATIVE_DTYPES
    return DTYPES.get(recipe.runtime.backend, _NATIVE_DTYPES)


def is_decomposed(recipe: Recipe) -> bool:
    """Whether this TensorRT's graphs have newer operators in primitives."""
    return _release(recipe.runtime.version) < _release(FIRST_WITH_LAYERS)


def check_model(model: ExportedModel, recipe: Recipe) -> None:
    """Raise for a model that the recipe's runtime cannot execute: ModelError, naming sizes, formats
    or what the blocks have; ConfigError for activations that overflow. An unquantized checkpoint is
    what the recipe will make of it."""
    check = MODEL_CHECKS.get(recipe.runtime.backend)
    if check is not None:
        check(model, recipe)
    _check_activations(model, recipe)  # last: another type helps none that fails before


def _check_activations(model: ExportedModel, recipe: Recipe) -> None:
    """Raise ConfigError for activations that the runtime does not execute, or that do not hold what
    the model computes; the advice is one that both take."""
    executed, dtype = activation_dtypes(recipe), recipe.runtime.activation_dtype
    runtime, overflows = recipe.runtime.backend, model.decoder.architecture.overflows_float16
    usable = [each for each in executed if not (overflows and each == "float16")]
    if dtype in usable:
        return
    forms = ""
    if runtime.startswith("tensorrt"):
        forms = f" with --linear {recipe.export.linear} --attention {recipe.export.attention}"
    kind = f"activations of model_type '{model.decoder.model_type}'"
    if dtype in executed:
        problem = f"{model.path}: {kind} exceed what float16 can hold"
    else:
        problem = (
            f"runtime {runtime}{forms} executes {' or '.join(executed)} activations, recipe "
            f"{recipe.name} has {dtype}"
        )
        if overflows and "float16" in executed:
            problem += f", and {kind} exceed what float16 can hold"
    raise ConfigError(f"{problem}; give --activation-dtype {' or '.join(usable)}")


def check_context(decoder: Decoder, context: int | None, source: str) -> None:
    """Raise ConfigError for more tokens than a model has positions. source: what says how many."""
    longest = decoder.max_positions
    if context is not None and context > longest:
        raise ConfigError(
            f"--context {context} is beyond the {longest} positions of {source}; give {longest} or "
            "less"
        )


def _check_onnxruntime(model: ExportedModel, recipe: Recipe) -> None:
    size = model.decoder.head_size
    if size % _ONNXRUNTIME_HEAD_MULTIPLE:
        raise ModelError(
            f"{model.path}: runtime onnxruntime cannot execute it: head size {size} is not a "
            f"multiple of {_ONNXRUNTIME_HEAD_MULTIPLE}, which its attention wants"
        )


def _check_cuda(model: ExportedModel, recipe: Recipe) -> None:
    """What a program has no place for, and what no kernel exists for."""
    decoder, problems = model.decoder, []
    extras = beyond_llama(decoder)
    if extras:
        raise ModelError(
            f"{model.path}: runtime cuda does not have yet what its model_type "
            f"'{decoder.model_type}' needs: {', '.join(extras)}; export it with "
            "--runtime onnxruntime"
        )
    if decoder.head_size not in HEAD_SIZES:
        sizes = ", ".join(map(str, HEAD_SIZES))
        problems.append(f"head size {decoder.head_size} is not one of {sizes}")
    for what, size in (
        ("hidden_size", decoder.hidden_size),
        ("intermediate_size", decoder.intermediate_size),
    ):
        if size % _VECTOR:
            problems.append(f"{what} {size} is not a multiple of {_VECTOR}")
    problems += _packing_problems(model)
    if problems:
        raise ModelError(
            f"{model.path}: no CUDA kernel exists for it: {'; '.join(problems)}; export it "
            "with --runtime onnxruntime"
        )


def _check_tensorrt(model: ExportedModel, recipe: Recipe) -> None:
    """Sizes and number formats that no node exists for."""
    if recipe.export.linear == "plugin":
        remedy = "; give --linear native, or quantize the original model again"
        problems = [f"{each}{remedy}" for each in _packing_problems(model)]
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


MODEL_CHECKS: Mapping[str, Callable[[ExportedModel, Recipe], None]] = {
    "onnxruntime": _check_onnxruntime,
    "cuda": _check_cuda,
    "tensorrt": _check_tensorrt,
    "tensorrt-rtx": _check_tensorrt,
}


def _names(model: ExportedModel) -> list[str]:
    return [*model.linear_names(), model.decoder.architecture.lm_head]


def _packing_problems(model: ExportedModel) -> list[str]:
    """The first linear whose groups the kernels' layout does not have."""
    for name in _names(model):
        if model.is_quantized(name):
            group_size = model.linear_format(name).group_size
            if group_size not in GROUP_SIZES:
                groups = ", ".join(map(str, GROUP_SIZES))
                return [f"group_size {group_size} of {name} is not one of {groups}"]
    return []


def _native_linear_problems(model: ExportedModel, recipe: Recipe) -> list[str]:
    """TensorRT's DequantizeLinear has no zero points."""
    reason = "TensorRT's INT4 layers have no zero points"
    if not model.has_quantized:
        if recipe.quantization.method == "none":
            return []
        if recipe.quantization.scheme == "asymmetric":
            return [f"--linear native needs symmetric weights, {reason}; give --scheme symmetric"]
        return []  # lm_head is quantized with the blocks then
    for name in _names(model):
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


def _check_tensorrt_version(recipe: Recipe) -> None:
    version = recipe.runtime.version
    if _release(version) < _release(OLDEST_TENSORRT):
        raise ConfigError(
            f"recipe {recipe.name} has version {version} of runtime tensorrt; graphs are made for "
            f"{OLDEST_TENSORRT} and newer: take a recipe of a Jetson, or write one with the "
            "TensorRT that the target has"
        )
    if is_decomposed(recipe) and recipe.export.linear == "native":
        raise ConfigError(
            f"--linear native needs TensorRT {FIRST_WITH_LAYERS}, recipe {recipe.name} has "
            f"{version}: the graph for it is opset {DECOMPOSED_OPSET}, whose DequantizeLinear has "
            "no groups; give --linear plugin"
        )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
