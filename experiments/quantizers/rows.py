"""The rows of the comparison: what makes each one's weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TypeAlias

from awq_edge.errors import ConfigError

METHODS = ("rtn", "awq", "gptq", "awq+gptq", "refined")
BITS = (4, 3, 2)
# llama.cpp's formats by the bits that they have to be compared at.
GGML_TYPES = ("Q4_K", "IQ4_XS", "Q3_K", "IQ3_S", "Q2_K", "IQ2_S")
# The checkpoint that bundles are exported from.
EXPORTED = "refined-4"


@dataclass(frozen=True)
class OwnRow:
    """A checkpoint of `awq-edge quantize`.

    method: None for the default. calibrated: whether a calibration text is given; else it is the
    default one.
    """

    label: str
    method: str | None
    bits: int
    calibrated: bool


@dataclass(frozen=True)
class BundleRow:
    """A bundle for onnxruntime, exported from the checkpoint of another row.

    checkpoint: name of that row. accuracy_level: of MatMulNBits. lm_head_bits: of the output layer.
    """

    label: str
    checkpoint: str
    accuracy_level: int
    lm_head_bits: int


@dataclass(frozen=True)
class PeerRow:
    """Another tool's weights. script: in scripts/peers. options: its own flags."""

    label: str
    script: str
    options: tuple[str, ...]


Row: TypeAlias = OwnRow | BundleRow | PeerRow


def rows() -> dict[str, Row]:
    """Every row by name, in the order in which they are measured."""
    named: dict[str, Row] = {}
    for bits in BITS:
        for method in METHODS:
            named[f"{method}-{bits}"] = OwnRow(_method_label(method), method, bits, True)
        named[f"default-{bits}"] = OwnRow("awq-edge, default", None, bits, False)
        named[f"autoround-{bits}"] = PeerRow(
            "AutoRound", "auto_round_model.py", ("--bits", str(bits))
        )
        for method in ("gptq", "awq"):
            named[f"llmcompressor-{method}-{bits}"] = PeerRow(
                f"llm-compressor {method.upper()}",
                "llm_compressor_model.py",
                ("--bits", str(bits), "--method", method),
            )
    for name in GGML_TYPES:
        named[name.lower()] = PeerRow(f"llama.cpp {name}", "ggml_model.py", ("--type", name))
    for level, head in ((0, 16), (4, 16), (0, 8), (4, 8)):
        label = f"the same in onnxruntime, accuracy level {level}, output layer {head} bits"
        named[f"bundle-level{level}-head{head}"] = BundleRow(label, EXPORTED, level, head)
    return named


def chosen(patterns: Iterable[str]) -> dict[str, Row]:
    """The rows whose names match one of the patterns ("autoround-*"); no pattern: all.

    Raises ConfigError for a pattern that no row matches.
    """
    named, wanted = rows(), list(patterns)
    for pattern in wanted:
        if not any(fnmatch(name, pattern) for name in named):
            raise ConfigError(f"no row is called {pattern}; there are {', '.join(named)}")
    return {
        name: row
        for name, row in named.items()
        if not wanted or any(fnmatch(name, pattern) for pattern in wanted)
    }


def _method_label(method: str) -> str:
    labels: Mapping[str, str] = {"refined": "refined"}
    return f"awq-edge {labels.get(method, method.upper())}"
