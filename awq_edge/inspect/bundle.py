"""The contents of a bundle, by its manifest."""

from __future__ import annotations

import math
from pathlib import Path

from awq_edge.artifacts.directories import Bundle, BundleManifest
from awq_edge.artifacts.input_files import read_json
from awq_edge.errors import ModelError
from awq_edge.inspect.files import compare_files
from awq_edge.inspect.provenance import read_report, report_provenance
from awq_edge.inspect.schema import (
    ArchitectureReport,
    BundleReport,
    Inspection,
    ProvenanceReport,
    QuantizationFormat,
    WeightsReport,
    bits_per_weight,
)
from awq_edge.model.archs import Decoder, decoder_from_config
from awq_edge.runtime.memory import kv_cache_bytes


def inspect_bundle(path: Path, *, verify: bool) -> Inspection:
    """Inspect a bundle directory. Raises ArtifactError when its manifest cannot be read."""
    manifest = Bundle.open(path, verify=False).manifest
    files, problems = compare_files(path, manifest.files, verify=verify)
    notes: list[str] = []
    parameters: dict[str, int] = {}
    total, tied = None, None
    try:
        decoder = decoder_from_config(read_json(path / "config.json"))
        parameters = _parameters(decoder)
        notes += decoder.notes
    except ModelError as error:
        notes.append(f"the number of parameters is not known: {error}")
    report, note = read_report(path)
    if note is not None:
        notes.append(note)
    notes += [] if report is None else [f"the quantization warned: {w}" for w in report.warnings]
    if parameters:
        total = decoder.count_parameters(was_tied=manifest.output_layer_was_tied)
        tied = decoder.tied_embeddings
    parts = tuple(_part(manifest, name, parameters.get(name)) for name in manifest.part_bytes)
    provenance = ProvenanceReport() if report is None else report_provenance(report)
    return Inspection(
        kind="bundle",
        path=str(path),
        model_type=manifest.model_type,
        architecture=ArchitectureReport(
            layers=manifest.num_layers,
            hidden_size=manifest.hidden_size,
            intermediate_size=manifest.intermediate_size,
            heads=manifest.num_heads,
            kv_heads=manifest.num_kv_heads,
            head_size=manifest.head_size,
            vocab_size=manifest.vocab_size,
            context=manifest.context,
            tied_embeddings=tied,
        ),
        quantization=None
        if manifest.method == "none"
        else QuantizationFormat(
            method=manifest.method,
            bits=manifest.bits,
            group_size=manifest.group_size,
            scheme=manifest.scheme,
        ),
        bundle=BundleReport(
            runtime=manifest.runtime,
            min_runtime_version=manifest.min_runtime_version,
            opset=manifest.opset,
            activation_dtype=manifest.activation_dtype,
            accuracy_level=manifest.accuracy_level,
            prefill_chunk=manifest.prefill_chunk,
            lm_head_bits=manifest.lm_head_bits,
        ),
        parameters=total,
        size=sum(file.size or 0 for file in files),
        weight_bytes=sum(manifest.part_bytes.values()),
        bits_per_weight=bits_per_weight(sum(manifest.part_bytes.values()), total),
        quantized_bits_per_weight=None,  # norms and biases are in the same sum
        weight_bytes_per_token=manifest.bytes_per_token,
        kv_bytes_per_token=kv_cache_bytes(manifest, 1),
        parts=parts,
        dtypes={},
        unquantized=manifest.unquantized,
        provenance=provenance.model_copy(
            update={
                "model_name": manifest.model_name,
                "commit": manifest.commit,
                "versions": provenance.versions | {"awq-edge": manifest.awq_edge_version},
                "source": manifest.source,
            }
        ),
        files=files,
        notes=tuple(notes),
        problems=problems,
    )


def _parameters(decoder: Decoder) -> dict[str, int]:
    """Parameters of the unquantized model by the manifest's parts.

    Norms count with the part that they stand before. A tied lm_head is a part too, in the form that
    its kernel reads, but no further parameters.
    """
    arch = decoder.architecture
    counts = {"embedding": 0, "blocks": 0, "lm_head": 0}
    for name, shape in decoder.weight_shapes().items():
        part = "blocks"
        if not name.startswith(f"{arch.layers}."):
            part = "embedding" if name == f"{arch.embedding}.weight" else "lm_head"
        counts[part] += math.prod(shape)
    if decoder.tied_embeddings:
        counts["lm_head"] += counts["embedding"]
    return counts


def _part(manifest: BundleManifest, name: str, parameters: int | None) -> WeightsReport:
    size = manifest.part_bytes[name]
    return WeightsReport(
        name=name,
        parameters=parameters,
        formats={_format(manifest, name, size, parameters): parameters},
        bytes=size,
        bits_per_weight=bits_per_weight(size, parameters),
        bytes_per_token=_read_per_token(manifest, name),
    )


def _format(manifest: BundleManifest, name: str, size: int, parameters: int | None) -> str:
    if name == "blocks" and manifest.method != "none":
        return f"{manifest.bits}-bit, group {manifest.group_size}, {manifest.scheme}"
    if name == "lm_head" and manifest.lm_head_bits < 16:
        return f"{manifest.lm_head_bits}-bit"
    if name == "tables":
        return "float32"
    if name == "embedding" and parameters:
        return f"{8 * size // parameters}-bit float"
    return manifest.activation_dtype


def _read_per_token(manifest: BundleManifest, name: str) -> int:
    """Bytes that a decode step reads: of embedding and tables one row; of the blocks the rest of
    the manifest's figure, which leaves out experts that are not chosen."""
    rows = {"embedding": manifest.vocab_size, "tables": manifest.context}
    others = {
        part: size // rows.get(part, 1)
        for part, size in manifest.part_bytes.items()
        if part != "blocks"
    }
    return others.get(name, max(0, manifest.bytes_per_token - sum(others.values())))
