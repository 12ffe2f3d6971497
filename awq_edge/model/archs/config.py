"""From config.json to a Decoder: the keys that Hugging Face configurations share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from awq_edge.artifacts.config_keys import (
    MAX_CHANNELS,
    MAX_EXPERTS,
    MAX_EXPERTS_IN_ALL,
    MAX_HEAD_SIZE,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_VOCABULARY,
    MAX_WINDOW,
    ConfigKeys,
)
from awq_edge.artifacts.input_files import show, show_text
from awq_edge.errors import ModelError
from awq_edge.model.archs.base import Architecture, Config
from awq_edge.model.archs.decoder import Decoder, MixtureOfExperts
from awq_edge.model.archs.known_keys import (
    doubtful_keys,
    require_read,
    unknown_keys,
    unknown_notes,
)
from awq_edge.model.archs.rotary import read_rotations
from awq_edge.model.archs.vision import ImageTokens, class_names, image_tokens, text_part

_MAX_NORM_EPS = 0.1
_REQUIRED = {"is_causal": True}  # transformers' masks of every model ask for it
_DTYPES = ("float16", "bfloat16", "float32", "float64")
# transformers 5 has the parameters of each kind of layer under its name.
_WHOLE, _WINDOWED = "full_attention", "sliding_attention"


def resolve_decoder(arch: Architecture, config: Config) -> Decoder:
    """Resolve config.json for `arch`. Raises ModelError naming the offending key and value."""
    whole = ConfigKeys(config)
    version = whole.text("transformers_version", "", nullable=True)
    unknown = unknown_keys(class_names(arch, whole), config)
    whole = keys = whole.without(unknown)
    outer, images, text = arch, None, None
    if arch.vision is not None:
        images = image_tokens(arch.vision, keys)
        arch, text = text_part(arch, keys)
        if text is not None:
            keys = text.keys
            unknown |= {f"text_config.{key}": value for key, value in text.unknown.items()}
    decoder = _decoder(arch, keys.with_defaults(arch.defaults), images, unknown)
    require_read(whole, outer.no_effect + arch.no_effect, outer.model_type)
    if text is not None:
        require_read(keys, arch.no_effect, text.name)
    doubtful = doubtful_keys(unknown, version)
    notes = (*decoder.notes, *unknown_notes(unknown, doubtful, outer.model_type))
    return replace(decoder, notes=notes, doubtful_keys=doubtful)


def _decoder(
    arch: Architecture, keys: ConfigKeys, images: ImageTokens | None, unknown: dict[str, Any]
) -> Decoder:
    """unknown: keys that transformers does not have; those of the rotation are added."""
    _require(arch, keys)
    num_heads = keys.size("num_attention_heads", MAX_HEADS)
    hidden_size = keys.size("hidden_size", MAX_CHANNELS)
    head_size = keys.size(
        "head_dim", MAX_HEAD_SIZE, hidden_size // num_heads, nullable="head_dim" in arch.nullable
    )
    num_kv_heads = keys.size(
        "num_key_value_heads",
        MAX_HEADS,
        num_heads,
        nullable="num_key_value_heads" in arch.nullable,
    )
    if num_heads % num_kv_heads:
        raise ModelError(
            f"config.json: num_attention_heads {num_heads} is not a multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    num_layers = keys.size("num_hidden_layers", MAX_LAYERS)
    max_positions = keys.size("max_position_embeddings", MAX_POSITIONS)
    rotations = read_rotations(arch, keys, head_size, max_positions)
    unknown |= rotations.unknown
    embedding_size = hidden_size
    if arch.embedding_size is not None:
        embedding_size = keys.size(arch.embedding_size, MAX_CHANNELS, hidden_size, nullable=True)
    eos_token_ids = keys.token_ids("eos_token_id")
    return Decoder(
        architecture=arch,
        vocab_size=keys.size("vocab_size", MAX_VOCABULARY),
        hidden_size=hidden_size,
        intermediate_size=keys.size(arch.intermediate_size, MAX_CHANNELS),
        embedding_size=embedding_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        max_positions=max_positions,
        norm_eps=_norm_eps(arch, keys),
        norm_first=_flag(arch.norm_first, keys),
        activation=_activation(arch, keys),
        rope=rotations.whole,
        local_rope=rotations.windowed,
        notes=rotations.notes,
        windows=_windows(arch, keys, num_layers),
        attention_scale=_attention_scale(arch, keys, head_size),
        attention_softcap=_optional_number(keys, arch.attention_softcap),
        logits_softcap=_optional_number(keys, arch.logits_softcap),
        embedding_scale=_multiplier(
            keys, arch.embedding_multiplier, hidden_size**0.5 if arch.scaled_embedding else 1.0
        ),
        residual_scale=_multiplier(keys, arch.residual_multiplier),
        logits_divisor=_multiplier(keys, arch.logits_divisor),
        moe=_moe(arch, keys, num_layers),
        tied_embeddings=keys.flag("tie_word_embeddings"),
        qkv_bias=_flag(arch.qkv_bias, keys),
        output_bias=_flag(arch.output_bias, keys),
        mlp_bias=_flag(arch.mlp_bias, keys),
        dtype=_dtype(keys),
        bos_token_id=keys.token_id("bos_token_id"),
        eos_token_ids=eos_token_ids,
        images=images,
    )


def _require(arch: Architecture, keys: ConfigKeys) -> None:
    for key, wanted in {**_REQUIRED, **arch.required}.items():
        flag = keys.flag(key, wanted, nullable=True)
        if flag != wanted:
            raise ModelError(
                f"config.json: '{key}' is {show(flag)}, which is not supported for "
                f"{arch.model_type}; supported: {show(wanted)}"
            )


def _activation(arch: Architecture, keys: ConfigKeys) -> str:
    activation = keys.text(arch.activation, arch.activations[0])
    if activation not in arch.activations:
        raise ModelError(
            f"config.json: {arch.activation} '{show_text(activation)}' is not supported for "
            f"{arch.model_type}; supported: {', '.join(arch.activations)}"
        )
    return activation


def _norm_eps(arch: Architecture, keys: ConfigKeys) -> float:
    key = arch.norm_eps
    return key if isinstance(key, float) else keys.number(key, 1e-6, most=_MAX_NORM_EPS)


def _dtype(keys: ConfigKeys) -> str:
    """transformers 5 writes dtype; earlier files have torch_dtype."""
    key = "dtype" if "dtype" in keys else "torch_dtype"
    dtype = keys.text(key, "float16", nullable=True)
    if dtype not in _DTYPES:
        raise keys.refusal(key, f"must be one of {', '.join(_DTYPES)}", dtype)
    return dtype


def _attention_scale(arch: Architecture, keys: ConfigKeys, head_size: int) -> float:
    if arch.attention_multiplier is not None:
        return keys.number(arch.attention_multiplier, 1.0)
    if arch.attention_scale is not None:
        head_size = keys.size(arch.attention_scale, MAX_CHANNELS)
    scale: float = float(head_size) ** -0.5
    return scale


def _multiplier(keys: ConfigKeys, key: str | None, otherwise: float = 1.0) -> float:
    """A factor of config.json, 1 where it lacks it; `otherwise` where no key stands for it."""
    return otherwise if key is None else keys.number(key, 1.0)


def _optional_number(keys: ConfigKeys, key: str | None) -> float | None:
    return None if key is None else keys.optional_number(key)


def _flag(flag: bool | str, keys: ConfigKeys) -> bool:
    return flag if isinstance(flag, bool) else keys.flag(flag)


def _moe(arch: Architecture, keys: ConfigKeys, num_layers: int) -> MixtureOfExperts | None:
    """Experts stand in every `decoder_sparse_step`-th layer that mlp_only_layers does not name."""
    if arch.experts is None:
        return None
    names = arch.experts
    count = next((key for key in names.num_experts if key in keys.values), None)
    if count is None:
        raise ModelError(f"config.json: '{names.num_experts[0]}' is missing")
    num_experts, *_ = (  # the other one is checked too
        keys.size(key, MAX_EXPERTS) for key in names.num_experts if key in keys.values
    )
    if num_experts * num_layers > MAX_EXPERTS_IN_ALL:
        raise ModelError(
            f"config.json: {count} {num_experts:,} in num_hidden_layers {num_layers:,} are "
            f"{num_experts * num_layers:,} experts; at most {MAX_EXPERTS_IN_ALL:,} are supported"
        )
    per_token = keys.size(names.experts_per_token, MAX_EXPERTS)
    if per_token > num_experts:
        raise ModelError(
            f"config.json: {names.experts_per_token} {per_token} is more than the {num_experts} "
            f"experts of {count}"
        )
    step = keys.size("decoder_sparse_step", MAX_LAYERS, 1)
    dense = set(keys.counts("mlp_only_layers", MAX_LAYERS))
    return MixtureOfExperts(
        num_experts=num_experts,
        experts_per_token=per_token,
        intermediate_size=keys.size(names.intermediate_size, MAX_CHANNELS),
        normalised=_flag(names.normalised, keys),
        layers=tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers)),
    )


def _windows(arch: Architecture, keys: ConfigKeys, num_layers: int) -> tuple[int | None, ...]:
    if arch.window_rule == "none":
        return (None,) * num_layers
    window = keys.optional_size("sliding_window", MAX_WINDOW)
    # Those whose layers follow no pattern have a flag for it.
    has_flag = arch.window_rule != "all_layers" and arch.full_attention_every is None
    if has_flag and not keys.flag("use_sliding_window"):
        window = None
    if arch.window_rule != "layer_types":
        return (window,) * num_layers
    kinds = keys.texts("layer_types")
    if kinds is not None:
        pattern = arch.full_attention_every
        keys.settle("max_window_layers", *([pattern] if isinstance(pattern, str) else []))
    else:
        kinds = _layer_types(arch, keys, num_layers, window)
    if len(kinds) != num_layers:
        raise ModelError(
            f"config.json: layer_types has {len(kinds)} entries for {num_layers} layers"
        )
    for kind in kinds:
        if kind not in (_WHOLE, _WINDOWED):
            raise ModelError(
                f"config.json: layer_types has '{show_text(kind)}', which is not supported for "
                f"{arch.model_type}; supported: {_WHOLE}, {_WINDOWED}"
            )
    if window is None and _WINDOWED in kinds:
        off = "use_sliding_window is off" if has_flag and "sliding_window" in keys else "it is null"
        raise ModelError(
            f"config.json: layers of kind '{_WINDOWED}' need a sliding_window, and {off}; "
            "transformers runs no such model either"
        )
    return tuple(window if kind == _WINDOWED else None for kind in kinds)


def _layer_types(
    arch: Architecture, keys: ConfigKeys, num_layers: int, window: int | None
) -> tuple[str, ...]:
    """The layer types of a config.json that does not list them."""
    every = arch.full_attention_every
    if every is not None:
        every = every if isinstance(every, int) else keys.size(every, MAX_LAYERS)
        return tuple(_WINDOWED if (layer + 1) % every else _WHOLE for layer in range(num_layers))
    # Qwen: layers from max_window_layers on use the window, when there is one.
    first = keys.count("max_window_layers", MAX_LAYERS, 0)
    if window is None:
        first = num_layers
    return tuple(_WHOLE if layer < first else _WINDOWED for layer in range(num_layers))
