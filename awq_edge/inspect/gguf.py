"""The contents of a GGUF file, by its header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from awq_edge.artifacts.directories import hash_file
from awq_edge.artifacts.gguf_header import MADE_BY, GgufHeader, how_to_run, read_gguf_header
from awq_edge.inspect.schema import (
    ArchitectureReport,
    DtypeReport,
    FileReport,
    Inspection,
    ProvenanceReport,
    bits_per_weight,
)

_OUTPUT = "output.weight"
_EMBEDDING = "token_embd.weight"
_TOKENS = "tokenizer.ggml.tokens"
_TEMPLATE = "tokenizer.chat_template"
_SIZES = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count",
          "context_length")  # fmt: skip


def inspect_gguf(path: Path, *, hashes: bool) -> Inspection:
    """Inspect a GGUF file, whoever wrote it. hashes: of the file, which reads it whole.

    Raises ArtifactError for a damaged header.
    """
    header = read_gguf_header(path)
    parameters = sum(tensor.weights for tensor in header.tensors)
    size, made_by = header.size, header.keys.get(MADE_BY)
    entry = hash_file(path) if hashes else None
    return Inspection(
        kind="GGUF file",
        path=str(path),
        model_type=header.architecture,
        architecture=_architecture(header),
        quantization=None,
        bundle=None,
        parameters=parameters,
        size=size,
        weight_bytes=header.data_bytes,
        bits_per_weight=bits_per_weight(header.data_bytes, parameters),
        quantized_bits_per_weight=None,
        weight_bytes_per_token=None,
        kv_bytes_per_token=None,
        parts=(),
        dtypes=_types(header),
        unquantized={},
        provenance=ProvenanceReport(
            model_name=_text(header.keys.get("general.name")),
            versions={} if made_by is None else {"awq-edge": str(made_by)},
        ),
        files=(
            FileReport(
                name=path.name,
                size=size,
                sha256=None if entry is None else entry.sha256,
                status="unchecked",
            ),
        ),
        notes=tuple(_notes(header, path)),
        problems=(),
    )


def _architecture(header: GgufHeader) -> ArchitectureReport | None:
    """The sizes, None where the file does not name them all as single numbers."""
    sizes = [header.of_architecture(key) for key in _SIZES]
    if not all(type(size) is int and size > 0 for size in sizes):
        return None
    layers, hidden_size, intermediate_size, heads, context = sizes
    kv_heads = header.of_architecture("attention.head_count_kv")
    head_size = header.of_architecture("attention.key_length")
    names = {tensor.name for tensor in header.tensors}
    return ArchitectureReport(
        layers=layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        heads=heads,
        kv_heads=kv_heads if type(kv_heads) is int else heads,
        head_size=head_size if type(head_size) is int else hidden_size // heads,
        vocab_size=header.array_lengths.get(_TOKENS, 0),
        context=context,
        tied_embeddings=_OUTPUT not in names if _EMBEDDING in names else None,
    )


def _types(header: GgufHeader) -> dict[str, DtypeReport]:
    """Tensors by type, the largest first."""
    sizes = sorted(header.type_bytes().items(), key=lambda item: -item[1])
    counts = {kind: sum(t.type == kind for t in header.tensors) for kind, _ in sizes}
    return {kind: DtypeReport(tensors=counts[kind], bytes=size) for kind, size in sizes}


def _notes(header: GgufHeader, path: Path) -> list[str]:
    model, pre = (header.keys.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    method, number_format = (header.keys.get(f"awq_edge.{key}") for key in ("method", "format"))
    template = "with" if _TEMPLATE in header.keys else "without"
    notes = [f"tokenizer {model}, pre-tokenizer {pre}, {template} a chat template"]
    if method is not None:
        notes.append(f"quantized by awq-edge: {method}, {number_format}")
    return [*notes, f"to run it: {how_to_run(path)}"]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
