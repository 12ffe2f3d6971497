"""Rotary position embedding tables, NumPy only.

Half-split rotation as Hugging Face stores it: channel i pairs with channel i + rotary_size / 2.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from awq_edge.model.archs.base import Rope

Float32 = npt.NDArray[np.float32]


def rope_tables(rope: Rope, positions: int) -> tuple[Float32, Float32]:
    """Cosine and sine of every position: two float32 arrays [positions, rotary_size / 2].

    The attention factor of yarn and longrope is multiplied in. longrope has two tables: the long
    factors' where `positions` exceeds what the model was first trained with, else the short ones'.
    Sources: Su et al. 2021 (arXiv 2104.09864), Chen et al. 2023 (linear, arXiv 2306.15595), Peng
    et al. 2023 (yarn, arXiv 2309.00071), Ding et al. 2024 (longrope, arXiv 2402.13753), the Llama
    3.1 model card's reference code (llama3).
    Raises ModelError when config.json lacks a parameter that the kind needs.
    """
    radians, factor = frequencies(rope, positions)
    angles = np.arange(positions, dtype=np.float32)[:, None] * radians[None, :]
    return (
        (np.cos(angles) * factor).astype(np.float32),
        (np.sin(angles) * factor).astype(np.float32),
    )


def frequencies(rope: Rope, positions: int) -> tuple[Float32, float]:
    """Radians per position, float32 [rotary_size / 2], and the factor on cosine and sine, of a
    context of so many positions. Raises ModelError as `rope_tables`."""
    exponents = np.arange(0, rope.rotary_size, 2, dtype=np.float32) / np.float32(rope.rotary_size)
    plain = (np.float32(1.0) / np.float32(rope.theta) ** exponents).astype(np.float32)
    if rope.kind == "default":
        return plain, 1.0
    if rope.kind == "linear":
        return (plain / np.float32(rope.parameter("factor"))).astype(np.float32), 1.0
    if rope.kind == "llama3":
        return _llama3(rope, plain), 1.0
    if rope.kind == "longrope":
        return _longrope(rope, plain, positions)
    return _yarn(rope, plain)


def _llama3(rope: Rope, plain: Float32) -> Float32:
    factor = rope.parameter("factor")
    low, high = rope.parameter("low_freq_factor"), rope.parameter("high_freq_factor")
    assert rope.original_max_positions is not None
    wavelengths = 2 * math.pi / plain
    # 0 where the wavelength is long (divide by factor), 1 where it is short (keep).
    keep = (rope.original_max_positions / wavelengths - low) / (high - low)
    keep = np.clip(keep, 0.0, 1.0)
    return ((1 - keep) * plain / factor + keep * plain).astype(np.float32)


def _longrope(rope: Rope, plain: Float32, positions: int) -> tuple[Float32, float]:
    assert rope.original_max_positions is not None
    is_long = positions > rope.original_max_positions
    factors = np.asarray(rope.long_factor if is_long else rope.short_factor, np.float32)
    extension, original = rope.parameter("factor"), rope.original_max_positions
    usual = math.sqrt(1 + math.log(extension) / math.log(original)) if extension > 1 else 1.0
    return plain / factors, rope.parameter("attention_factor", usual)


def _yarn(rope: Rope, plain: Float32) -> tuple[Float32, float]:
    factor = rope.parameter("factor")
    assert rope.original_max_positions is not None
    original = rope.original_max_positions

    def channel_of(rotations: float) -> float:
        """The channel pair that turns `rotations` times within the original context."""
        return (
            rope.rotary_size
            * math.log(original / (rotations * 2 * math.pi))
            / (2 * math.log(rope.theta))
        )

    low, high = (
        channel_of(rope.parameter("beta_fast", 32.0)),
        channel_of(rope.parameter("beta_slow", 1.0)),
    )
    if not rope.parameter("no_truncate", 0.0):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_size - 1)
    channels = np.arange(rope.rotary_size // 2, dtype=np.float32)
    # 1 where the channel turns fast (keep the frequency), 0 where it is slow (interpolate).
    span = high - low if high != low else 0.001
    keep = 1 - np.clip((channels - low) / span, 0.0, 1.0)
    frequencies = (plain / factor * (1 - keep) + plain * keep).astype(np.float32)
    return frequencies, _yarn_attention_factor(rope, factor)


def _yarn_attention_factor(rope: Rope, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    given = dict(rope.parameters)
    if "attention_factor" in given:
        return given["attention_factor"]
    if given.get("mscale") and given.get("mscale_all_dim"):
        return mscale(given["mscale"]) / mscale(given["mscale_all_dim"])
    return mscale(1.0)
