"""From config.json to a Decoder: the keys that Hugging Face configurations share."""

from __future__ import annotations

from typing import Any

from awq_edge.archs.base import Architecture, Config, Decoder, Rope, RopeKind
from awq_edge.errors import ModelError

_ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "llama3", "yarn")
_ROPE_NUMBERS = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
)
_ACTIVATIONS = ("silu",)


def resolve_decoder(arch: Architecture, config: Config) -> Decoder:
    """Resolve config.json for `arch`. Raises ModelError naming the offending key and value."""
    num_heads = _integer(config, "num_attention_heads")
    hidden_size = _integer(config, "hidden_size")
    head_size = _integer(config, "head_dim", hidden_size // num_heads)
    num_kv_heads = _integer(config, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"config.json: num_attention_heads {num_heads} is not a multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    activation = str(config.get("hidden_act", "silu"))
    if activation not in _ACTIVATIONS:
        raise ModelError(
            f"config.json: hidden_act '{activation}' is not supported for {arch.model_type}; "
            f"supported: {', '.join(_ACTIVATIONS)}"
        )
    num_layers = _integer(config, "num_hidden_layers")
    max_positions = _integer(config, "max_position_embeddings")
    return Decoder(
        architecture=arch,
        vocab_size=_integer(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_integer(config, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        max_positions=max_positions,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        activation=activation,
        rope=_rope(config, head_size, max_positions),
        windows=_windows(arch, config, num_layers),
        attention_scale=head_size**-0.5,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=_flag(arch.qkv_bias, config),
        output_bias=_flag(arch.output_bias, config),
        mlp_bias=_flag(arch.mlp_bias, config),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float16"),
        bos_token_id=_first(config.get("bos_token_id")),
        eos_token_ids=_all(config.get("eos_token_id")),
    )


def _integer(config: Config, key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ModelError(f"config.json: '{key}' must be a positive integer, found {value!r}")
    return value


def _flag(flag: bool | str, config: Config) -> bool:
    return flag if isinstance(flag, bool) else bool(config.get(flag, False))


def _all(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)


def _first(value: Any) -> int | None:
    values = _all(value)
    return values[0] if values else None


def _windows(arch: Architecture, config: Config, num_layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window")
    if arch.window_rule == "none" or not window:
        return (None,) * num_layers
    if arch.window_rule == "all_layers":
        return (int(window),) * num_layers
    kinds = config.get("layer_types")
    if kinds is None:
        # Qwen: layers from max_window_layers on use the window, when it is switched on at all.
        first = int(config.get("max_window_layers", 0))
        if not config.get("use_sliding_window", False):
            first = num_layers
        kinds = ["full_attention"] * first + ["sliding_attention"] * (num_layers - first)
        kinds = kinds[:num_layers]
    if len(kinds) != num_layers:
        raise ModelError(
            f"config.json: layer_types has {len(kinds)} entries for {num_layers} layers"
        )
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)


def _rope(config: Config, head_size: int, max_positions: int) -> Rope:
    # transformers 5 writes rope_parameters; earlier files have rope_theta and rope_scaling.
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind not in _ROPE_KINDS:
        raise ModelError(
            f"config.json: rope type '{kind}' is not supported; supported: {', '.join(_ROPE_KINDS)}"
        )
    theta = parameters.get("rope_theta") or config.get("rope_theta") or 10000.0
    fraction = parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    original = parameters.get("original_max_position_embeddings")
    if original is None and kind in ("llama3", "yarn"):
        original = config.get("original_max_position_embeddings", max_positions)
    numbers = tuple(
        (name, float(parameters[name]))
        for name in _ROPE_NUMBERS
        if parameters.get(name) is not None
    )
    if kind == "yarn" and parameters.get("truncate") is False:
        numbers += (("no_truncate", 1.0),)
    return Rope(
        kind=kind,
        theta=float(theta),
        rotary_size=int(head_size * float(fraction)),
        parameters=numbers,
        original_max_positions=None if original is None else int(original),
    )
