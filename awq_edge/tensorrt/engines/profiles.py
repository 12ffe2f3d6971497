"""The optimization profiles of an engine: shapes of a decode step and of a prefill chunk."""

from __future__ import annotations

from dataclasses import dataclass

from awq_edge.artifacts.directories import BundleManifest, TensorPort
from awq_edge.errors import ArtifactError
from awq_edge.kernels.interface import DECODE_ROWS
from awq_edge.runtime.memory import LOGITS_ROWS
from awq_edge.tensorrt.engines.manifest import EngineProfile, ShapeRange

DECODE, PREFILL = "decode", "prefill"


@dataclass(frozen=True)
class _Sizes:
    """Values of the dimensions that vary."""

    tokens: int
    rows: int


def profiles_of(manifest: BundleManifest) -> tuple[EngineProfile, ...]:
    """Decode: few tokens, tuned for one. Prefill: more, tuned for a whole chunk.

    They meet where the quantized linear changes its kernel (docs/plugin.md), so that TensorRT times
    each with the one that it will run. A chunk that is not longer than that needs one profile only.
    Raises ArtifactError for a dimension that has no known size.
    """
    chunk = min(manifest.prefill_chunk, manifest.context)
    few = min(DECODE_ROWS, chunk)
    ranges = [(DECODE, _Sizes(1, 1), _Sizes(1, 1), _Sizes(few, few))]
    if chunk > few:
        rows = min(LOGITS_ROWS, chunk)
        ranges.append((PREFILL, _Sizes(few + 1, 1), _Sizes(chunk, 1), _Sizes(chunk, rows)))
    return tuple(
        EngineProfile(
            name=name,
            min_tokens=smallest.tokens,
            max_tokens=largest.tokens,
            max_rows=largest.rows,
            shapes={
                port.name: ShapeRange(
                    min=_shape(port, smallest, manifest),
                    opt=_shape(port, tuned, manifest),
                    max=_shape(port, largest, manifest),
                )
                for port in manifest.inputs
            },
        )
        for name, smallest, tuned, largest in ranges
    )


def _shape(port: TensorPort, sizes: _Sizes, manifest: BundleManifest) -> tuple[int, ...]:
    known = {
        "batch": 1,
        "sequence": sizes.tokens,
        "positions": sizes.rows,
        "context": manifest.context,
    }
    shape = []
    for size in port.shape:
        if isinstance(size, str) and size not in known:
            raise ArtifactError(
                f"input {port.name} of the graph has a dimension '{size}' whose size is not known; "
                "export the bundle again with this version"
            )
        shape.append(known[size] if isinstance(size, str) else size)
    return tuple(shape)
