"""From config.json to a Decoder: the keys that Hugging Face configurations share."""

from __future__ import annotations

from typing import Any

from awq_edge.archs.base import Architecture, Config, Rope, RopeKind
from awq_edge.archs.decoder import Decoder, MixtureOfExperts
from awq_edge.archs.vision import image_tokens, text_part
from awq_edge.errors import ModelError

_ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "llama3", "yarn", "longrope")
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
# transformers 5 has the parameters of each kind of layer under its name.
_WHOLE, _WINDOWED = "full_attention", "sliding_attention"


def resolve_decoder(arch: Architecture, config: Config) -> Decoder:
    """Resolve config.json for `arch`. Raises ModelError naming the offending key and value."""
    images = None
    if arch.vision is not None:
        images = image_tokens(arch.vision, config)
        arch, config = text_part(arch, config)
    config = {**arch.defaults, **config}
    _require(arch, config)
    num_heads = _integer(config, "num_attention_heads")
    hidden_size = _integer(config, "hidden_size")
    head_size = _integer(config, "head_dim", hidden_size // num_heads)
    num_kv_heads = _integer(config, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"config.json: num_attention_heads {num_heads} is not a multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    num_layers = _integer(config, "num_hidden_layers")
    max_positions = _integer(config, "max_position_embeddings")
    rope, local_rope = _ropes(arch, config, head_size, max_positions)
    divisor = head_size if arch.attention_scale is None else _number(config, arch.attention_scale)
    embedding_size = hidden_size
    if arch.embedding_size is not None:
        embedding_size = _integer(config, arch.embedding_size, hidden_size)
    return Decoder(
        architecture=arch,
        vocab_size=_integer(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_integer(config, arch.intermediate_size),
        embedding_size=embedding_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        max_positions=max_positions,
        norm_eps=_norm_eps(arch, config),
        norm_first=_flag(arch.norm_first, config),
        activation=_activation(arch, config),
        rope=rope,
        local_rope=local_rope,
        windows=_windows(arch, config, num_layers),
        attention_scale=float(divisor) ** -0.5,
        attention_softcap=_optional_number(config, arch.attention_softcap),
        logits_softcap=_optional_number(config, arch.logits_softcap),
        embedding_scale=hidden_size**0.5 if arch.scaled_embedding else 1.0,
        moe=_moe(arch, config, num_layers),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=_flag(arch.qkv_bias, config),
        output_bias=_flag(arch.output_bias, config),
        mlp_bias=_flag(arch.mlp_bias, config),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float16"),
        bos_token_id=_first(config.get("bos_token_id")),
        eos_token_ids=_all(config.get("eos_token_id")),
        images=images,
    )


def _require(arch: Architecture, config: Config) -> None:
    for key, wanted in arch.required.items():
        found = config.get(key, wanted)
        if bool(found) != wanted:
            raise ModelError(
                f"config.json: '{key}' is {found!r}, which is not supported for "
                f"{arch.model_type}; supported: {wanted}"
            )


def _activation(arch: Architecture, config: Config) -> str:
    found = str(config.get(arch.activation) or arch.activations[0])
    if found not in arch.activations:
        raise ModelError(
            f"config.json: {arch.activation} '{found}' is not supported for {arch.model_type}; "
            f"supported: {', '.join(arch.activations)}"
        )
    return found


def _norm_eps(arch: Architecture, config: Config) -> float:
    key = arch.norm_eps
    return key if isinstance(key, float) else float(config.get(key, 1e-6))


def _integer(config: Config, key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ModelError(f"config.json: '{key}' must be a positive integer, found {value!r}")
    return value


def _number(config: Config, key: str) -> float:
    value = config.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise ModelError(f"config.json: '{key}' must be a positive number, found {value!r}")
    return float(value)


def _optional_number(config: Config, key: str | None) -> float | None:
    return None if key is None or config.get(key) is None else _number(config, key)


def _flag(flag: bool | str, config: Config) -> bool:
    return flag if isinstance(flag, bool) else bool(config.get(flag, False))


def _all(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)


def _first(value: Any) -> int | None:
    values = _all(value)
    return values[0] if values else None


def _moe(arch: Architecture, config: Config, num_layers: int) -> MixtureOfExperts | None:
    """Experts stand in every `decoder_sparse_step`-th layer that mlp_only_layers does not name."""
    if arch.experts is None:
        return None
    keys = arch.experts
    count = next((key for key in keys.num_experts if config.get(key) is not None), None)
    if count is None:
        raise ModelError(f"config.json: '{keys.num_experts[0]}' is missing")
    num_experts = _integer(config, count)
    per_token = _integer(config, keys.experts_per_token)
    if per_token > num_experts:
        raise ModelError(
            f"config.json: {keys.experts_per_token} {per_token} is more than the {num_experts} "
            f"experts of {count}"
        )
    step = _integer(config, "decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers") or []
    return MixtureOfExperts(
        num_experts=num_experts,
        experts_per_token=per_token,
        intermediate_size=_integer(config, keys.intermediate_size),
        normalised=_flag(keys.normalised, config),
        layers=tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers)),
    )


def _windows(arch: Architecture, config: Config, num_layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window")
    unused = arch.window_rule == "if_used" and not config.get("use_sliding_window", False)
    if arch.window_rule == "none" or not window or unused:
        return (None,) * num_layers
    if arch.window_rule != "layer_types":
        return (int(window),) * num_layers
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = _layer_types(arch, config, num_layers)
    if len(kinds) != num_layers:
        raise ModelError(
            f"config.json: layer_types has {len(kinds)} entries for {num_layers} layers"
        )
    return tuple(int(window) if kind == _WINDOWED else None for kind in kinds)


def _layer_types(arch: Architecture, config: Config, num_layers: int) -> list[str]:
    """What a config.json without layer_types stands for."""
    every = arch.full_attention_every
    if every is not None:
        every = every if isinstance(every, int) else _integer(config, every)
        return [_WINDOWED if (layer + 1) % every else _WHOLE for layer in range(num_layers)]
    # Qwen: layers from max_window_layers on use the window, when it is switched on at all.
    first = int(config.get("max_window_layers", 0))
    if not config.get("use_sliding_window", False):
        first = num_layers
    return ([_WHOLE] * first + [_WINDOWED] * (num_layers - first))[:num_layers]


def _ropes(
    arch: Architecture, config: Config, head_size: int, max_positions: int
) -> tuple[Rope, Rope]:
    """Of layers without and with a window."""
    if arch.positions is not None:
        none = Rope("default", 10000.0, 0)
        return none, none
    # transformers 5 writes rope_parameters; earlier files have rope_theta and rope_scaling.
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    key = arch.local_rope_theta
    if key is None:
        rope = _rope(config, parameters, "rope_theta", head_size, max_positions)
        return rope, rope
    _integer(config, "sliding_window")  # the layers that have it are those of the other rotation
    # The scaling of earlier files is for layers without a window alone.
    is_nested = _WHOLE in parameters or _WINDOWED in parameters
    whole = parameters.get(_WHOLE) if is_nested else parameters
    local = parameters.get(_WINDOWED) if is_nested else None
    return (
        _rope(config, whole or {}, "rope_theta", head_size, max_positions),
        _rope(config, local or {}, key, head_size, max_positions),
    )


def _rope(
    config: Config, parameters: Config, theta_key: str, head_size: int, max_positions: int
) -> Rope:
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    kind = "longrope" if kind == "su" else kind  # its name in the first files of Phi-3
    if kind == "mrope":
        kind = "default"  # with positions of three axes, which text has the same on each
    if kind not in _ROPE_KINDS:
        raise ModelError(
            f"config.json: rope type '{kind}' is not supported; supported: {', '.join(_ROPE_KINDS)}"
        )
    theta = parameters.get("rope_theta") or config.get(theta_key) or 10000.0
    fraction = parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    rotary_size = int(head_size * float(fraction))
    original = parameters.get("original_max_position_embeddings")
    outer = config.get("original_max_position_embeddings")
    if kind == "longrope" and outer is not None:
        original = outer  # where both are there, transformers takes this one
    if original is None and kind in ("llama3", "yarn", "longrope"):
        original = max_positions if outer is None else outer
    numbers = tuple(
        (name, float(parameters[name]))
        for name in _ROPE_NUMBERS
        if parameters.get(name) is not None
    )
    if kind == "yarn" and parameters.get("truncate") is False:
        numbers += (("no_truncate", 1.0),)
    short, long = _factors(parameters, rotary_size) if kind == "longrope" else ((), ())
    if kind == "longrope" and original is not None and parameters.get("factor") is None:
        numbers += (("factor", max_positions / int(original)),)
    return Rope(
        kind=kind,
        theta=float(theta),
        rotary_size=rotary_size,
        parameters=numbers,
        original_max_positions=None if original is None else int(original),
        short_factor=short,
        long_factor=long,
        sections=_sections(parameters, rotary_size),
    )


def _sections(parameters: Config, rotary_size: int) -> tuple[int, ...]:
    """mrope_section: pairs of channels that each axis of a position turns."""
    sections = parameters.get("mrope_section") or ()
    if sections and sum(sections) != rotary_size // 2:
        raise ModelError(
            f"config.json: 'mrope_section' is {sections!r}, which must sum to {rotary_size // 2}, "
            "half of the head size"
        )
    return tuple(int(section) for section in sections)


def _factors(parameters: Config, rotary_size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """short_factor and long_factor: of every pair of channels."""
    found = []
    for key in ("short_factor", "long_factor"):
        values = parameters.get(key)
        if not isinstance(values, list) or len(values) != rotary_size // 2:
            count = len(values) if isinstance(values, list) else values
            raise ModelError(
                f"config.json: rope type 'longrope' needs {rotary_size // 2} numbers in '{key}', "
                f"found {count}"
            )
        found.append(tuple(float(value) for value in values))
    return found[0], found[1]
