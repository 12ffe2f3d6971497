"""The contents of a model or checkpoint directory, by its config.json and safetensors headers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from awq_edge.errors import KeyValueError, ModelError
from awq_edge.inspect.files import list_files
from awq_edge.inspect.provenance import read_report, report_provenance
from awq_edge.inspect.schema import (
    ArchitectureReport,
    DtypeReport,
    Inspection,
    Kind,
    ProvenanceReport,
    QuantizationFormat,
    WeightsReport,
    bits_per_weight,
)
from awq_edge.model.archs import Decoder, decoder_from_config
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.files import ModelFiles
from awq_edge.model.foreign_formats import foreign_of_directory
from awq_edge.model.layouts import layout_of_config, quantization_config
from awq_edge.model.safetensors_files import TensorEntry

_KINDS: dict[str, Kind] = {
    "awq": "autoawq checkpoint",
    "compressed-tensors": "compressed-tensors checkpoint",
}
_PARTS = ("embedding", "blocks", "norms", "lm_head", "vision", "other")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_CACHE_ITEM_BYTES = 2  # float16 or bfloat16: what a runtime takes unless told otherwise
_NEVER = "never quantized: decides which experts a token is sent to"
_NO_REASON = "not quantized in the checkpoint"


def inspect_model(path: Path, *, hashes: bool) -> Inspection:
    """Inspect a model or checkpoint directory. hashes: of every file, which reads them all.

    Raises ModelError when config.json or a safetensors file is missing or damaged.
    """
    foreign = foreign_of_directory(path)
    files = ModelFiles(path) if foreign is None else ModelFiles.of_foreign(path)
    kind: Kind = "other checkpoint" if foreign is not None else _kind(files.config)
    notes: list[str] = []
    problems: list[str] = [] if files.damage is None else [files.damage]
    checkpoint: Checkpoint | None = None
    if foreign is not None:
        notes.append(f"{foreign}: not read here, so that parts are not known; {foreign.remedy}")
    else:
        try:
            notes += decoder_from_config(files.config).notes
        except KeyValueError as error:
            problems.append(str(error))
        except ModelError as error:
            notes.append(f"parts are not known: {error}")
        else:
            try:
                checkpoint = Checkpoint.open(path)
            except ModelError as error:
                problems.append(str(error))
    report, note = read_report(path)
    if note is not None:
        notes.append(note)
    notes += [] if report is None else [f"the quantization warned: {w}" for w in report.warnings]
    listed = list_files(path, hashes=hashes)
    weights = None if checkpoint is None else _Weights(checkpoint)
    return Inspection(
        kind=kind,
        path=str(path),
        model_type=_text(files.config.get("model_type")),
        architecture=None if checkpoint is None else _architecture(checkpoint.decoder),
        quantization=None if checkpoint is None else _quantization(checkpoint),
        bundle=None,
        parameters=_stored_parameters(files, kind) if weights is None else weights.parameters,
        size=sum(file.size or 0 for file in listed),
        weight_bytes=sum(entry.size for entry in files.entries.values()),
        bits_per_weight=None
        if weights is None
        else bits_per_weight(weights.unique_bytes, weights.parameters),
        quantized_bits_per_weight=None if weights is None else weights.quantized_bits(),
        weight_bytes_per_token=None
        if weights is None
        else sum(part.bytes_per_token for part in weights.parts()),
        kv_bytes_per_token=None if checkpoint is None else _cache_bytes(checkpoint.decoder),
        parts=() if weights is None else tuple(weights.parts()),
        dtypes=_dtypes(files),
        unquantized={}
        if weights is None
        else weights.unquantized({} if report is None else report.unquantized),
        provenance=ProvenanceReport() if report is None else report_provenance(report),
        files=listed,
        notes=tuple(notes),
        problems=tuple(problems),
    )


@dataclass
class _Sum:
    """Sums over the weights of one part."""

    parameters: int = 0
    bytes: int = 0
    bytes_per_token: int = 0
    formats: dict[str, int | None] = field(default_factory=dict)


class _Weights:
    """The weights of a checkpoint, summed by part."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._entries = checkpoint.files.entries
        self._stored = _by_module(self._entries)
        self._shapes = checkpoint.decoder.weight_shapes()
        moe = checkpoint.decoder.moe
        self._expert_share = 1.0 if moe is None else moe.experts_per_token / moe.num_experts
        self._sums = {name: _Sum() for name in _PARTS}
        counted: set[str] = set()
        for name, shape in self._shapes.items():
            counted |= self._add(name, shape)
        for name in checkpoint.kept_names:
            self._add_kept(self._entries[name])
            counted.add(name)
        rest = [entry for name, entry in self._entries.items() if name not in counted]
        self._sums["other"].bytes += sum(entry.size for entry in rest)
        for entry in rest:
            self._sums["other"].formats.setdefault(entry.dtype, None)
        vision = self._sums["vision"].parameters
        self.parameters = (
            checkpoint.decoder.count_parameters(was_tied=checkpoint.output_layer_was_tied) + vision
        )
        self.unique_bytes = sum(self._entries[name].size for name in counted)

    def parts(self) -> Iterator[WeightsReport]:
        """The parts that have weights."""
        for name, sums in self._sums.items():
            if sums.bytes:
                yield WeightsReport(
                    name=name,
                    parameters=sums.parameters or None,
                    formats=sums.formats,
                    bytes=sums.bytes,
                    bits_per_weight=bits_per_weight(sums.bytes, sums.parameters),
                    bytes_per_token=sums.bytes_per_token,
                )

    def quantized_bits(self) -> float | None:
        """Bits of a weight in the quantized linears, with their scales and zero points."""
        size, parameters = 0, 0
        for name, shape in self._shapes.items():
            linear = name.removesuffix(".weight")
            if self._checkpoint.is_quantized(linear):
                size += sum(self._entries[tensor].size for tensor in self._tensors(name))
                parameters += math.prod(shape)
        return bits_per_weight(size, parameters)

    def unquantized(self, reasons: Mapping[str, str]) -> dict[str, str]:
        """Unquantized linears in the blocks of a quantized checkpoint. reasons: of its report."""
        if self._checkpoint.quantization is None:
            return {}
        decoder = self._checkpoint.decoder
        layers = f"{decoder.architecture.layers}."
        reasons = dict.fromkeys(decoder.unquantized_modules(), _NEVER) | dict(reasons)
        return {
            name: reasons.get(name, _NO_REASON)
            for name, shape in (
                (weight.removesuffix(".weight"), shape) for weight, shape in self._shapes.items()
            )
            if name.startswith(layers) and len(shape) == 2 and not name.endswith(".bias")
            if not self._checkpoint.is_quantized(name)
        }

    def _add(self, name: str, shape: tuple[int, ...]) -> set[str]:
        """Count one weight of the unquantized model. Returns the names of its stored tensors."""
        tensors = self._tensors(name)
        size = sum(self._entries[tensor].size for tensor in tensors)
        sums, parameters = self._sums[self._part(name, shape)], math.prod(shape)
        sums.parameters += parameters
        sums.bytes += size
        sums.bytes_per_token += self._read_per_token(name, shape, size)
        stored = self._format(name)
        sums.formats[stored] = (sums.formats.get(stored) or 0) + parameters
        return set(tensors)

    def _add_kept(self, entry: TensorEntry) -> None:
        """Count a tensor of a vision tower or projector, which a decode step does not read."""
        sums, parameters = self._sums["vision"], math.prod(entry.shape)
        sums.parameters += parameters
        sums.bytes += entry.size
        sums.formats[entry.dtype] = (sums.formats.get(entry.dtype) or 0) + parameters

    def _tensors(self, name: str) -> list[str]:
        linear = name.removesuffix(".weight")
        if not self._checkpoint.is_quantized(linear):
            return [name]
        return [tensor for tensor in self._stored[linear] if not tensor.endswith(".bias")]

    def _part(self, name: str, shape: tuple[int, ...]) -> str:
        arch = self._checkpoint.decoder.architecture
        module = name.rpartition(".")[0]
        if module in (arch.embedding, arch.lm_head):
            return "embedding" if module == arch.embedding else "lm_head"
        is_norm = len(shape) == 1 and len(self._shapes.get(f"{module}.weight", ())) == 1
        if is_norm:
            return "norms"
        return "blocks" if name.startswith(f"{arch.layers}.") else "other"

    def _read_per_token(self, name: str, shape: tuple[int, ...], size: int) -> int:
        """Bytes of a weight that one decode step reads: of the embedding one row (and all of it
        where it is the output layer too), of learned positions one, of the experts the chosen
        ones."""
        decoder = self._checkpoint.decoder
        arch, module = decoder.architecture, name.removesuffix(".weight")
        if module == arch.embedding:
            return size // shape[0] + (size if decoder.tied_embeddings else 0)
        if module == arch.positions:
            return size // shape[0]
        if _EXPERT.search(name):
            return round(size * self._expert_share)
        return size

    def _format(self, name: str) -> str:
        linear = name.removesuffix(".weight")
        if not self._checkpoint.is_quantized(linear):
            return self._entries[name].dtype
        return str(self._checkpoint.linear_format(linear))


def _by_module(entries: Mapping[str, TensorEntry]) -> dict[str, list[str]]:
    """Names of tensors by the text before their last dot."""
    modules: dict[str, list[str]] = {}
    for name in entries:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    return modules


def _kind(config: Mapping[str, Any]) -> Kind:
    """The kind of a directory whose format is read here."""
    settings = quantization_config(config)
    return "model" if settings is None else _KINDS[layout_of_config(settings, Path()).name]


def _quantization(checkpoint: Checkpoint) -> QuantizationFormat | None:
    quantization = checkpoint.quantization
    if quantization is None:
        return None
    return QuantizationFormat(
        method=quantization.method,
        bits=quantization.bits,
        group_size=quantization.group_size,
        scheme=quantization.scheme,
    )


def _architecture(decoder: Decoder) -> ArchitectureReport:
    return ArchitectureReport(
        layers=decoder.num_layers,
        hidden_size=decoder.hidden_size,
        intermediate_size=decoder.intermediate_size,
        heads=decoder.num_heads,
        kv_heads=decoder.num_kv_heads,
        head_size=decoder.head_size,
        vocab_size=decoder.vocab_size,
        context=decoder.max_positions,
        tied_embeddings=decoder.tied_embeddings,
    )


def _cache_bytes(decoder: Decoder) -> int:
    """Keys and values of one position, in 16 bits."""
    per_layer = 2 * decoder.num_kv_heads * decoder.head_size
    return decoder.num_layers * per_layer * _CACHE_ITEM_BYTES


def _dtypes(files: ModelFiles) -> dict[str, DtypeReport]:
    tensors: dict[str, list[int]] = {}
    for entry in files.entries.values():
        tensors.setdefault(entry.dtype, []).append(entry.size)
    return {
        dtype: DtypeReport(tensors=len(sizes), bytes=sum(sizes))
        for dtype, sizes in sorted(tensors.items(), key=lambda item: -sum(item[1]))
    }


def _stored_parameters(files: ModelFiles, kind: Kind) -> int | None:
    """Parameters of a model of an unknown architecture: the stored values, where it is
    unquantized."""
    if kind != "model":
        return None
    return sum(math.prod(entry.shape) for entry in files.entries.values())


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
