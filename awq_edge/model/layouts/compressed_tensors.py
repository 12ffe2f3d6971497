"""compressed-tensors' `pack-quantized`: 2, 3, 4 and 8 bits, linears that differ. Read by
transformers and vLLM.

    NAME.weight_packed      int32 [out, ceil(in * bits / 32)]      codes
    NAME.weight_scale       float16 (bfloat16, float32) [out, in / group]
    NAME.weight_zero_point  int32 [ceil(out * bits / 32), in / group]   absent where symmetric
    NAME.weight_shape       int64 [2]                              out, in

A row of codes is one string of bits, code i in bits i * bits and up, cut into int32 words; what is
left of the last word is 0. Three bits, the first eleven codes:

    bit     31 30   29 28 27   ...   5 4 3   2 1 0          of the next word   0
    code     10        9       ...     1       0            third bit of       10

Zero points are packed the same way along out_features. Codes are unsigned here: the package counts
from -2**(bits-1) and adds that back before it packs. Before compressed-tensors 0.18 no code went
across two words (ten 3-bit codes in one); that is told from the number of columns, and read.

Source: compressed-tensors 0.20, `compressors/pack_quantized` and `quantization/quant_args`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from awq_edge.artifacts.config_keys import ConfigKeys
from awq_edge.artifacts.input_files import show, show_text
from awq_edge.errors import ModelError
from awq_edge.model.bit_strings import (
    WORD,
    is_loose,
    loose_words_of,
    pack_torch,
    unpack,
    words_of,
)
from awq_edge.model.layouts.base import (
    ANY_LINEAR,
    ONE_GROUP,
    Array,
    CheckpointFormats,
    Entries,
    Layout,
    Read,
    Shapes,
    StoredConfig,
    check_groups,
    is_group_size,
    matcher,
    quantization_keys,
)
from awq_edge.model.w4a16 import NumberFormat, UInt8

if TYPE_CHECKING:
    import torch

FORMAT = "pack-quantized"
_FLOATS = {8: "FP8", 4: "NVFP4 or MXFP4"}


class CompressedTensors(Layout):
    """The layout; see the module."""

    name = "compressed-tensors"
    quant_method = "compressed-tensors"
    description = f"compressed-tensors ({FORMAT})"
    bits = (2, 3, 4, 8)
    mixed = True
    integers = {
        "weight_packed": ("I32",),
        "weight_zero_point": ("I32", "I8"),
        "weight_shape": ("I64", "I32"),
    }

    def obstacle(
        self, out_features: int, in_features: int, number_format: NumberFormat
    ) -> str | None:
        """Only groups must fit; the package pads the last word of a row."""
        return check_groups(in_features, number_format.group_size)

    def read_config(self, quantization: Mapping[str, Any], path: Path) -> StoredConfig:
        """config_groups with weights alone quantized to integers."""
        keys = quantization_keys(quantization, path)
        _refuse_extras(keys, path)
        details = keys.table("awq_edge") or ConfigKeys({})
        groups = keys.table("config_groups") or ConfigKeys({})
        targets = {}
        for name in groups.values:
            group = groups.table(name) or ConfigKeys({})
            where = f"{path}: config_groups.{show_text(name)}"
            number_format = _group_format(group, where, self.bits)
            patterns = _patterns(group, "targets")
            if patterns is None:
                raise ModelError(f"{where} has no list of targets")
            targets.update(dict.fromkeys(patterns, number_format))
        return StoredConfig(
            method=details.text("method", self.quant_method),
            targets=targets,
            ignore=_patterns(keys, "ignore") or (),
        )

    def make_config(self, formats: CheckpointFormats) -> dict[str, Any]:
        """The main format for every Linear; others by name."""
        groups: dict[NumberFormat, list[str]] = {formats.main: [ANY_LINEAR]}
        for linear, number_format in formats.quantized.items():
            if number_format != formats.main:
                groups.setdefault(number_format, []).extend(formats.names(linear))
        dense = [name for linear in formats.dense for name in formats.names(linear)]
        return {
            "quant_method": self.quant_method,
            "format": FORMAT,
            "quantization_status": "compressed",
            "config_groups": {
                f"group_{index}": {
                    "targets": targets,
                    "weights": {
                        "num_bits": number_format.bits,
                        "type": "int",
                        "symmetric": number_format.scheme == "symmetric",
                        "strategy": "group",
                        "group_size": number_format.group_size,
                        "dynamic": False,
                        "actorder": None,
                    },
                    "input_activations": None,
                    "output_activations": None,
                }
                for index, (number_format, targets) in enumerate(groups.items())
            },
            "ignore": [*dense, *(rf"re:{re.escape(name)}(\.|$)" for name in formats.kept)],
            "kv_cache_scheme": None,
            "awq_edge": {"method": formats.method},
        }

    def is_stored(self, linear: str, entries: Entries) -> bool:
        return f"{linear}.weight_packed" in entries

    def shapes(
        self,
        linear: str,
        shape: tuple[int, int],
        number_format: NumberFormat,
        entries: Entries,
    ) -> Shapes:
        """Older checkpoints have 3-bit words with room left, and int8 zero points."""
        out_features, in_features = shape
        bits, groups = number_format.bits, in_features // number_format.group_size
        packed, zero = f"{linear}.weight_packed", f"{linear}.weight_zero_point"
        count = words_of
        if packed in entries and is_loose(entries[packed].shape[-1], in_features, bits):
            count = loose_words_of
        shapes = {
            packed: (out_features, count(in_features, bits)),
            self.scales_name(linear): (out_features, groups),
            f"{linear}.weight_shape": (2,),
        }
        if zero in entries and entries[zero].dtype == "I8":
            shapes[zero] = (out_features, groups)
        elif number_format.scheme == "asymmetric":
            shapes[zero] = (count(out_features, bits), groups)
        return shapes

    def scales_name(self, linear: str) -> str:
        return f"{linear}.weight_scale"

    def scales(self, linear: str, read: Read) -> Array:
        return read(f"{linear}.weight_scale")

    def stores_zeros(self, number_format: NumberFormat) -> bool:
        return number_format.scheme == "asymmetric"

    def zeros(self, linear: str, number_format: NumberFormat, read: Read) -> UInt8:
        packed, bits = read(f"{linear}.weight_zero_point"), number_format.bits
        if packed.dtype == np.int8:
            unsigned: UInt8 = (packed.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
            return unsigned
        out_features, in_features = self._shape(linear, read)
        loose = False
        if WORD % bits:  # else the two kinds are one
            loose = is_loose(read(f"{linear}.weight_packed").shape[1], in_features, bits)
        return np.ascontiguousarray(unpack(packed.T, bits, out_features, loose).T)

    def codes(self, linear: str, number_format: NumberFormat, read: Read) -> UInt8:
        packed, bits = read(f"{linear}.weight_packed"), number_format.bits
        in_features = self._in_features(linear, bits, packed, read)
        return unpack(packed, bits, in_features, is_loose(packed.shape[1], in_features, bits))

    def pack(
        self,
        linear: str,
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor,
        number_format: NumberFormat,
    ) -> dict[str, torch.Tensor]:
        import torch

        bits = number_format.bits
        tensors = {
            f"{linear}.weight_packed": pack_torch(codes, bits),
            f"{linear}.weight_scale": scales.contiguous(),
            f"{linear}.weight_shape": torch.tensor(codes.shape, dtype=torch.int64),
        }
        if number_format.scheme == "asymmetric":
            tensors[f"{linear}.weight_zero_point"] = pack_torch(zeros.T, bits).T.contiguous()
        elif bool((zeros != 2 ** (bits - 1)).any()):
            raise ValueError(f"a zero point is not {2 ** (bits - 1)}: the scheme is not symmetric")
        return tensors

    def nibbles(self, linear: str, number_format: NumberFormat, read: Read) -> Iterator[Array]:
        packed, bits = read(f"{linear}.weight_packed"), number_format.bits
        in_features = self._in_features(linear, bits, packed, read)
        if bits == 4:  # the same bytes, but for what pads the last word
            yield np.ascontiguousarray(packed).view(np.uint8)[:, : in_features // 2]
            return
        rows = max(1, _PIECE_CODES // in_features)
        loose = is_loose(packed.shape[1], in_features, bits)
        for begin in range(0, len(packed), rows):
            codes = unpack(packed[begin : begin + rows], bits, in_features, loose)
            yield codes[:, 0::2] | (codes[:, 1::2] << 4)

    def _in_features(self, linear: str, bits: int, packed: Array, read: Read) -> int:
        """From weight_shape. Raises ValueError where the packed codes have another shape."""
        out_features, in_features = self._shape(linear, read)
        rows, words = packed.shape
        if rows != out_features or words not in (
            words_of(in_features, bits),
            loose_words_of(in_features, bits),
        ):
            raise ValueError(
                f"weight_shape {[out_features, in_features]} does not fit weight_packed "
                f"{list(packed.shape)} of {bits} bits"
            )
        return in_features

    def _shape(self, linear: str, read: Read) -> tuple[int, int]:
        out_features, in_features = (int(size) for size in read(f"{linear}.weight_shape"))
        return out_features, in_features


LAYOUT = CompressedTensors()
_PIECE_CODES = 1 << 22  # unpacked at a time; a code is some 10 bytes while it is


def _refuse_extras(keys: ConfigKeys, path: Path) -> None:
    """Raise ModelError for settings that change the arithmetic and are not read here."""
    # In "mixed-precision" each group has a format; a missing one is the only one that is read.
    stored = keys.values.get("format")
    if stored not in (FORMAT, "mixed-precision", None):
        raise ModelError(
            f"{path}: quantization_config has format {show(stored)}; supported: {FORMAT} (export "
            "the unquantized model instead)"
        )
    groups = keys.table("config_groups")
    if groups is None or not groups.values:
        raise ModelError(f"{path}: quantization_config has no config_groups")
    sparsity = keys.table("sparsity_config") or ConfigKeys({})
    for key, is_there in (
        ("kv_cache_scheme", keys.values.get("kv_cache_scheme")),
        ("transform_config", keys.values.get("transform_config")),
        ("sparsity_config", sparsity.text("format", "dense", nullable=True) != "dense"),
    ):
        if is_there:
            raise ModelError(
                f"{path}: quantization_config has a {key}; supported: weights alone, "
                f"{FORMAT} (export the unquantized model instead)"
            )


def _patterns(keys: ConfigKeys, key: str) -> tuple[str, ...] | None:
    """Names and regular expressions of linears. Raises ModelError for one that cannot be matched,
    or not in bounded time."""
    patterns = keys.texts(key)
    for pattern in patterns or ():
        if not pattern.startswith("re:"):
            continue
        try:
            matcher(pattern.removeprefix("re:"))
        except ValueError as error:
            wanted = f"has a regular expression that cannot be used ({show_text(str(error))})"
            raise keys.refusal(key, wanted, pattern) from None
    return patterns


def _group_format(group: ConfigKeys, where: str, supported: tuple[int, ...]) -> NumberFormat:
    """The number format of one config group. where: for errors."""
    weights = group.table("weights")
    if weights is None:
        raise ModelError(f"{where} has no table of weights; quantize the model again")
    for key in ("input_activations", "output_activations"):
        if key in group:
            raise ModelError(
                f"{where} quantizes activations ({key}); supported: weights alone (export the "
                "unquantized model instead)"
            )
    stored = group.text("format", FORMAT, nullable=True)
    if stored != FORMAT:
        raise ModelError(f"{where} has format '{show_text(stored)}'; supported: {FORMAT}")
    if weights.values.get("type") == "float":
        bits = weights.size("num_bits", 64, 8)
        raise ModelError(
            f"{where}.weights has type 'float' of {bits} bits "
            f"({_FLOATS.get(bits, 'floating-point codes')}); supported: int (export the "
            "unquantized model instead)"
        )
    actorder = weights.values.get("actorder")
    if actorder is True or str(actorder).lower() in ("group", "dynamic"):
        raise ModelError(
            f"{where}.weights has actorder '{actorder}', whose groups are not of neighbouring "
            "channels; supported: none, weight, static"
        )
    group_size: Any = weights.values.get("group_size")
    # What the package infers where no strategy is written.
    inferred = "tensor" if group_size is None else "channel" if group_size == ONE_GROUP else "group"
    strategy = weights.text("strategy", inferred, nullable=True)
    bits = weights.size("num_bits", max(supported), 8)
    facts: dict[str, tuple[object, tuple[object, ...]]] = {
        "type": (weights.text("type", "int"), ("int",)),
        "num_bits": (bits, supported),
        "strategy": (strategy, ("group", "channel")),
        "dynamic": (weights.values.get("dynamic") or False, (False,)),
    }
    for key, (value, allowed) in facts.items():
        if value not in allowed:
            raise ModelError(
                f"{where}.weights has {key} {show(value)}; supported: "
                f"{', '.join(str(item) for item in allowed)}"
            )
    if strategy == "channel":
        group_size = ONE_GROUP
    elif not is_group_size(group_size):
        raise ModelError(
            f"{where}.weights has group_size {show(group_size)}; must be a positive number"
        )
    return NumberFormat(
        bits=bits,
        group_size=group_size,
        scheme="symmetric" if weights.flag("symmetric", True) else "asymmetric",
    )
