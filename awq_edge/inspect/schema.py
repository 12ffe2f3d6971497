"""The schema of `awq-edge inspect --json`. docs/inspect.md describes every key; a test holds them
equal.

Sizes are bytes. None stands for a value that the files do not tell.
"""

from __future__ import annotations

from typing import Literal

from awq_edge.artifacts.sampling_keys import SamplingKeys
from awq_edge.artifacts.schema import Manifest, Record

Kind = Literal[
    "model",
    "autoawq checkpoint",
    "compressed-tensors checkpoint",
    "other checkpoint",
    "bundle",
    "GGUF file",
]
# unchecked: its size agrees, or there is nothing to compare with. The rest is against a manifest.
FileStatus = Literal["unchecked", "verified", "missing", "resized", "changed", "engine", "unlisted"]


class ArchitectureReport(Record):
    """The decoder's sizes."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_size: int
    vocab_size: int
    context: int  # tokens that the model can take, of a bundle those of its export
    tied_embeddings: bool | None  # the embedding is the output layer too


class QuantizationFormat(Record):
    """Quantization of most linears. method: of the quantizer, or the format where nobody says."""

    method: str
    bits: int
    group_size: int
    scheme: str


class BundleReport(Record):
    """The target of a bundle's export; see `awq_edge.artifacts.directories.BundleManifest`."""

    runtime: str
    min_runtime_version: str | None
    opset: int | None
    activation_dtype: str
    accuracy_level: int | None
    prefill_chunk: int
    lm_head_bits: int


class SamplingReport(Record):
    """The sampling keys of chat and serve, where no flag and no request says otherwise.

    source: bundle (its export), model (generation_config.json), or default: it names none.
    """

    keys: SamplingKeys
    source: Literal["bundle", "model", "default"]


class WeightsReport(Record):
    """One part of the model."""

    # embedding, blocks, norms, lm_head, vision (tower and projector), tables (rotary), or other
    name: str
    parameters: int | None  # of the unquantized model
    formats: dict[str, int | None]  # number of parameters by stored format
    bytes: int
    bits_per_weight: float | None
    bytes_per_token: int  # read by one decode step


class DtypeReport(Record):
    """The tensors stored in one dtype of safetensors, or one type of GGUF."""

    tensors: int
    bytes: int


class ProvenanceReport(Record):
    """Origin of the weights."""

    model_name: str | None = None
    calibration: str | None = None  # in words
    versions: dict[str, str] = {}
    commit: str | None = None
    time: str | None = None
    source: dict[str, str] = {}  # facts of a bundle's manifest


class FileReport(Record):
    """One file."""

    name: str
    size: int | None  # None where it is missing
    sha256: str | None  # a bundle's as its manifest says
    status: FileStatus


class Inspection(Manifest):
    """The contents of a directory."""

    format: Literal["awq-edge-inspection"] = "awq-edge-inspection"
    format_version: Literal[1] = 1
    kind: Kind
    path: str
    model_type: str | None
    architecture: ArchitectureReport | None
    quantization: QuantizationFormat | None
    bundle: BundleReport | None
    sampling: SamplingReport | None = None
    parameters: int | None  # of the unquantized model
    size: int  # of all files
    weight_bytes: int  # of weights in them
    bits_per_weight: float | None  # weight_bytes over all parameters
    # of the quantized linears, with their scales and zero points
    quantized_bits_per_weight: float | None
    weight_bytes_per_token: int | None  # read by one decode step
    kv_bytes_per_token: int | None  # read for each position of the KV cache
    parts: tuple[WeightsReport, ...]
    dtypes: dict[str, DtypeReport]
    unquantized: dict[str, str]  # linears that stay as they were, with the reason
    provenance: ProvenanceReport
    files: tuple[FileReport, ...]
    notes: tuple[str, ...]  # unknown facts, with the reason
    problems: tuple[str, ...]  # damage


def bits_per_weight(size: int, parameters: int | None) -> float | None:
    """Bits of a weight; None where there are no parameters. size: bytes."""
    return None if not parameters else 8 * size / parameters
