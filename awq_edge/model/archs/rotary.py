"""The rotary embeddings that a config.json stands for: transformers 5's reading of it.

    rope_scaling      earlier files; where both are there, transformers takes it
    rope_parameters   transformers 5; Gemma 3 has one for each kind of layer in it
    rope_theta, partial_rotary_factor, original_max_position_embeddings
                      beside them, for what they lack

Source: transformers 5.23, modeling_rope_utils.py and the configurations of phi3 and gemma3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from awq_edge.artifacts.config_keys import MAX_POSITIONS, MAX_WINDOW, ConfigKeys
from awq_edge.artifacts.input_files import show, show_text
from awq_edge.errors import ModelError
from awq_edge.model.archs.base import Architecture, Rope, RopeKind

# Parameters of a rotation, and what each must be above. A mscale of 0 counts as none.
_ROPE_NUMBERS = {
    "factor": 0.0,
    "low_freq_factor": 0.0,
    "high_freq_factor": 0.0,
    "beta_fast": 0.0,
    "beta_slow": 0.0,
    "mscale": -1.0,
    "mscale_all_dim": -1.0,
    "attention_factor": 0.0,
}
_MAX_THETA = 1e30  # a float32 holds it
# transformers 5 has the parameters of each kind of layer under its name.
_WHOLE, _WINDOWED = "full_attention", "sliding_attention"
# Kinds whose parameters depend on how many positions the model was first trained with.
_EXTENDED = ("llama3", "yarn", "longrope")
_OF_SOME_KINDS = ("short_factor", "long_factor", "truncate")
_ORIGINAL = "original_max_position_embeddings"
_PARTIAL = "partial_rotary_factor"
_OVERRIDDEN = "config.json: rope_parameters are overridden by rope_scaling, as transformers does"


@dataclass(frozen=True)
class Rotations:
    """The rotations of a model. whole, windowed: of layers without and with a window. notes: keys
    that were read otherwise than they are written, and why. unknown: keys of rope_parameters that
    transformers does not have, with their values."""

    whole: Rope
    windowed: Rope
    notes: tuple[str, ...] = ()
    unknown: dict[str, Any] = field(default_factory=dict)


def read_rotations(
    arch: Architecture, keys: ConfigKeys, head_size: int, max_positions: int
) -> Rotations:
    """The rotations of a config.json. Raises ModelError naming a key that is not as it must be."""
    if arch.positions is not None:
        none = Rope("default", 10000.0, 0)
        return Rotations(none, none)
    # Two spellings of one thing, and keys beside both, which they take over.
    keys.settle("rope_parameters", "rope_scaling", "rope_theta", _PARTIAL, _ORIGINAL)
    if arch.local_rope_theta is None:
        return _shared_rotation(arch, keys, head_size, max_positions)
    keys.settle(arch.local_rope_theta)
    # The layers that have a window are those of the other rotation.
    keys.size("sliding_window", MAX_WINDOW)
    nothing = ConfigKeys({})
    parameters = keys.table("rope_parameters") or nothing
    scaling = keys.table("rope_scaling") or nothing  # of layers without a window alone
    whole = parameters.table(_WHOLE) or nothing
    local = parameters.table(_WINDOWED) or nothing
    notes = []
    if whole.values and scaling.values:
        notes.append(f"{_OVERRIDDEN}, where both have a key")
    ignored = sorted(set(parameters.values) - {_WHOLE, _WINDOWED})
    if ignored:
        notes.append(
            f"config.json: {', '.join(map(show_text, ignored))} of rope_parameters have no effect "
            f"outside {_WHOLE} and {_WINDOWED}, as in transformers"
        )
    whole = ConfigKeys({**whole.values, **scaling.values})
    sizes = (head_size, max_positions)
    first, first_notes = _rope(arch, keys, whole, "rope_theta", sizes, nested=True)
    second, second_notes = _rope(arch, keys, local, arch.local_rope_theta, sizes, nested=True)
    all_notes = dict.fromkeys([*notes, *first_notes, *second_notes])
    return Rotations(first, second, tuple(all_notes), {**_unknown(whole), **_unknown(local)})


def _unknown(parameters: ConfigKeys) -> dict[str, Any]:
    """Keys that nothing asked for; every key that transformers has is asked for."""
    return {f"rope_parameters.{key}": parameters.values[key] for key in parameters.unread()}


def _shared_rotation(
    arch: Architecture, keys: ConfigKeys, head_size: int, max_positions: int
) -> Rotations:
    """The one rotation of all layers."""
    parameters = keys.table("rope_scaling")
    notes: tuple[str, ...] = ()
    if parameters is None or not parameters.values:
        parameters = keys.table("rope_parameters") or ConfigKeys({})
    elif "rope_parameters" in keys and keys.table("rope_parameters") != parameters:
        notes = (_OVERRIDDEN,)
    for key in (_WHOLE, _WINDOWED):
        if key in parameters:
            raise ModelError(
                f"config.json: rope_parameters has '{key}': the layers of {arch.model_type} share "
                "one rotation; write its parameters without it"
            )
    sizes = (head_size, max_positions)
    rope, own_notes = _rope(arch, keys, parameters, "rope_theta", sizes, nested=False)
    return Rotations(rope, rope, (*notes, *own_notes), _unknown(parameters))


def _rope(
    arch: Architecture,
    keys: ConfigKeys,
    parameters: ConfigKeys,
    theta_key: str,
    sizes: tuple[int, int],
    *,
    nested: bool,
) -> tuple[Rope, list[str]]:
    """A rotation and notes on it. sizes: of a head, and the longest sequence. nested: transformers
    looks for the positions of the first training in `parameters` alone."""
    head_size, max_positions = sizes
    notes: list[str] = []
    parameters.settle("type", "rope_type", "rope_theta", *_OF_SOME_KINDS)
    kind = _rope_kind(arch, parameters, notes)
    theta_holder, theta_name = (parameters, "rope_theta")
    if "rope_theta" not in parameters.values:
        theta_holder, theta_name = keys, theta_key
    theta = theta_holder.number(theta_name, 10000.0, above=1.0, most=_MAX_THETA)
    rotary_size = _rotary_size(arch, keys, parameters, kind, head_size, notes)
    original = _original_positions(arch, kind, keys, parameters, max_positions, nested=nested)
    numbers = tuple(
        (name, parameters.number(name, above=least, most=1e9))
        for name, least in _ROPE_NUMBERS.items()
        if name in parameters
    )
    numbers += _derived_numbers(kind, parameters, original, max_positions, nested=nested)
    short, long = _factors(parameters, rotary_size) if kind == "longrope" else ((), ())
    rope = Rope(
        kind=kind,
        theta=theta,
        rotary_size=rotary_size,
        parameters=numbers,
        original_max_positions=original,
        short_factor=short,
        long_factor=long,
        sections=_sections(parameters, rotary_size),
    )
    return rope, notes


def _rope_kind(arch: Architecture, parameters: ConfigKeys, notes: list[str]) -> RopeKind:
    key = "rope_type" if "rope_type" in parameters else "type"
    name = parameters.text(key, "default", nullable=True)
    read = arch.rope_names.get(name, name)
    if read != name:
        notes.append(
            f"config.json: rope type '{show_text(name)}' is read as {read}, as transformers does "
            f"for {arch.model_type}"
        )
    # Positions of three axes, which text has the same on each.
    read = "default" if read == "mrope" else read
    for kind in arch.rope_kinds:
        if kind == read:
            return kind
    raise ModelError(
        f"config.json: rope type '{show_text(name)}' is not supported for {arch.model_type}; "
        f"supported: {', '.join(arch.rope_kinds)}"
    )


def _rotary_size(
    arch: Architecture,
    keys: ConfigKeys,
    parameters: ConfigKeys,
    kind: RopeKind,
    head_size: int,
    notes: list[str],
) -> int:
    """Channels of a head that are rotated: all, but where the architecture can rotate a part."""
    holder = parameters if _PARTIAL in parameters else keys
    fraction = holder.number(_PARTIAL, 1.0, most=1.0, nullable=not arch.partial_rotary)
    if fraction != 1.0 and not arch.partial_rotary:
        if kind != "default":
            raise holder.refusal(
                _PARTIAL,
                f"must be 1 for rope type '{kind}' in {arch.model_type}, which rotates whole heads",
                fraction,
            )
        notes.append(
            f"config.json: {_PARTIAL} {fraction:g} has no effect: {arch.model_type} rotates whole "
            "heads, as in transformers"
        )
        fraction = 1.0
    rotary_size = int(head_size * fraction)
    if rotary_size < 2 or rotary_size % 2:
        raise ModelError(
            f"config.json: {rotary_size} of the {head_size} channels of a head are rotated "
            f"(head_dim, {_PARTIAL}); channels are rotated in pairs"
        )
    return rotary_size


def _original_positions(
    arch: Architecture,
    kind: RopeKind,
    keys: ConfigKeys,
    parameters: ConfigKeys,
    max_positions: int,
    *,
    nested: bool,
) -> int | None:
    """Positions that the model was first trained with."""
    original = parameters.optional_size(_ORIGINAL, MAX_POSITIONS)
    outer = None
    if not nested and _ORIGINAL in arch.defaults:
        outer = keys.size(_ORIGINAL, MAX_POSITIONS)  # a key of the class, which takes no null
    elif not nested:
        outer = keys.optional_size(_ORIGINAL, MAX_POSITIONS)
    if kind not in _EXTENDED:
        return original
    if outer is not None:
        return outer  # where both are there, transformers takes this one
    return max_positions if original is None else original


def _derived_numbers(
    kind: RopeKind,
    parameters: ConfigKeys,
    original: int | None,
    max_positions: int,
    *,
    nested: bool,
) -> tuple[tuple[str, float], ...]:
    """Numbers derived from parameters. Raises ModelError where these exclude each other."""
    numbers: tuple[tuple[str, float], ...] = ()
    # transformers reads `truncate` in the table of all layers: a nested one is not found.
    whole = parameters.flag("truncate", False, nullable=True) or "truncate" not in parameters.values
    if kind == "yarn" and not whole and not nested:
        numbers += (("no_truncate", 1.0),)
    is_extended = kind == "longrope" or (kind == "yarn" and "factor" in parameters.values)
    if is_extended and original is not None and "factor" not in parameters:
        numbers += (("factor", max_positions / original),)
    if kind == "llama3" and "low_freq_factor" in parameters and "high_freq_factor" in parameters:
        low = parameters.number("low_freq_factor")
        high = parameters.number("high_freq_factor")
        if not low < high:
            raise parameters.refusal(
                "high_freq_factor", f"must be above low_freq_factor {low:g}", high
            )
    return numbers


def _sections(parameters: ConfigKeys, rotary_size: int) -> tuple[int, ...]:
    """mrope_section: pairs of channels that each axis of a position turns."""
    sections = parameters.counts("mrope_section", rotary_size)
    if sections and sum(sections) != rotary_size // 2:
        raise ModelError(
            f"config.json: 'mrope_section' is {show(sections)}, which must sum to "
            f"{rotary_size // 2}, half of the head size"
        )
    return sections


def _factors(
    parameters: ConfigKeys, rotary_size: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """short_factor and long_factor: of every pair of channels."""
    factors = []
    for key in ("short_factor", "long_factor"):
        values = parameters.items(key)
        if values is None or len(values) != rotary_size // 2:
            raise ModelError(
                f"config.json: rope type 'longrope' needs {rotary_size // 2} numbers in '{key}', "
                f"found {None if values is None else len(values)}"
            )
        factors.append(tuple(parameters.number_in(key, value) for value in values))
    return factors[0], factors[1]
