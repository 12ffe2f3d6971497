"""Artefacts on disk: directories with a manifest, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from awq_edge.artifacts.config_keys import (
    MAX_CHANNELS,
    MAX_EXPERTS,
    MAX_LAYERS,
    MAX_VOCABULARY,
    Bits,
    ByteCount,
    Channels,
    Heads,
    HeadSize,
    Positions,
    TensorSize,
    TokenId,
)
from awq_edge.artifacts.gguf_header import how_to_run, is_gguf
from awq_edge.artifacts.input_files import open_plain, require_plain, show
from awq_edge.artifacts.outputs import refuse_existing
from awq_edge.artifacts.paths import inner_path, is_disk_full, leaves, system_faults
from awq_edge.artifacts.sampling_keys import SamplingKeys
from awq_edge.artifacts.schema import Manifest, Record, read_manifest
from awq_edge.artifacts.verified import is_verified, remember
from awq_edge.errors import ArtifactError, ResourceError
from awq_edge.process.staging import flush, publish, sweep, temporary, workplace

MANIFEST = "manifest.json"
# A path in a manifest, below the folder that the manifest is in.
InnerPath = Annotated[str, AfterValidator(inner_path)]
# A position has at least a cosine and a sine of 16 bits in the rotary tables of a bundle.
_POSITION_BYTES = 4
_CHUNK = 1 << 20  # bytes read at a time when hashing
# Of linears and of attention in a graph for TensorRT: our plugin, or TensorRT's own layers.
Form = Literal["plugin", "native"]


class FileEntry(Record):
    """size: bytes. sha256: hexadecimal."""

    size: ByteCount
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TensorPort(Record):
    """One input or output of the graph. shape: integers, or names of dimensions that vary."""

    name: str
    dtype: str
    shape: Annotated[tuple[TensorSize | str, ...], Field(max_length=8)]


class PluginUse(Record):
    """A graph's demands on the TensorRT plugin (`awq_edge/tensorrt/contract.py`).

    ops: the operators that it has nodes of. version: of the operators' contract. layout_version:
    of the packing of the weights. attributes: by operator and name, every value that occurs.
    """

    ops: tuple[str, ...]
    version: str
    layout_version: int
    attributes: dict[str, dict[str, tuple[int | float, ...]]] = {}


class BundleManifest(Manifest):
    """manifest.json of a bundle: facts that the runtime must know before it opens the graph.

    *_bytes: what each part occupies in the weight file. context: tokens the KV cache holds.
    runtime: backend that the graph was lowered for. min_runtime_version: the oldest version of it
    that computes the graph right, None if any does. graph: the file that says what is computed.
    opset, accuracy_level (of MatMulNBits), inputs, outputs: of ONNX graphs. linear, attention,
    plugin: of graphs for TensorRT, what linears and attention are; plugin is None where both are
    TensorRT's own or, with linear "plugin", nothing is quantized. bits, group_size,
    scheme: of most weights of the blocks. other_formats: linears of blocks that differ from that,
    by full name, in words. sampling: what chat and serve draw by; None: the model names nothing, or
    the bundle is of before. source: what the bundle was made from.
    """

    noun: ClassVar[str] = "a valid bundle manifest"
    remedy: ClassVar[str] = "export the bundle again with this version"

    format: Literal["awq-edge-bundle"] = "awq-edge-bundle"
    format_version: Literal[1] = 1
    awq_edge_version: str
    commit: str | None
    model_name: str
    model_type: str
    runtime: str
    min_runtime_version: str | None = None
    opset: int | None = None
    graph: InnerPath
    weights: InnerPath
    context: Positions
    prefill_chunk: Positions
    vocab_size: Annotated[int, Field(ge=1, le=MAX_VOCABULARY)]
    hidden_size: Channels
    # Of the widest FFN that the graph has, an expert's or a dense one.
    intermediate_size: Channels
    experts_per_token: Annotated[int, Field(ge=0, le=MAX_EXPERTS)] = 0
    num_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    num_heads: Heads
    num_kv_heads: Heads
    head_size: HeadSize
    activation_dtype: Literal["float16", "bfloat16", "float32"]
    accuracy_level: int | None = None
    linear: Form | None = None
    attention: Form | None = None
    plugin: PluginUse | None = None
    method: str
    bits: Bits
    group_size: Annotated[int, Field(ge=0, le=MAX_CHANNELS)]
    scheme: str
    lm_head_bits: Bits
    # The output layer is a weight of its own that was made from the embedding.
    output_layer_was_tied: bool = False
    other_formats: dict[str, str] = {}
    bos_token_id: TokenId | None
    eos_token_ids: tuple[TokenId, ...]
    sampling: SamplingKeys | None = None
    # Bytes in the weight file by part: "embedding", "blocks", "lm_head", "tables".
    part_bytes: dict[str, ByteCount]
    # Bytes of weights that one decoded token reads (the embedding counts one row).
    bytes_per_token: ByteCount
    # Groups of codes with a scale, of all MatMulNBits nodes; 0 in other graphs.
    scale_groups: ByteCount = 0
    # Of runtime cuda: bytes of activations a row, of "tokens" of a chunk and "wanted" rows.
    arena_bytes: dict[str, ByteCount] = {}
    unquantized: dict[str, str]
    inputs: tuple[TensorPort, ...] = ()
    outputs: tuple[TensorPort, ...] = ()
    source: dict[str, str]
    files: dict[InnerPath, FileEntry]


class Bundle:
    """A bundle directory, opened: its manifest read and its files checked."""

    def __init__(self, path: Path, manifest: BundleManifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    @system_faults()
    def open(cls, path: Path, *, verify: bool = True) -> Bundle:
        """Read manifest.json and check every file's size and sha256.

        Raises ArtifactError naming the file that is missing, truncated or changed.
        """
        manifest_path = path / MANIFEST
        if is_gguf(path):
            raise ArtifactError(
                f"{path} is a GGUF file, which other programs run: {how_to_run(path)}"
            )
        if not path.is_dir():
            raise ArtifactError(f"bundle {path} does not exist; make it with `awq-edge export`")
        if not manifest_path.exists():
            raise ArtifactError(
                f"{path} has no {MANIFEST}: it is not a bundle made by `awq-edge export`"
            )
        manifest = read_manifest(BundleManifest, manifest_path)
        _check_sizes(manifest_path, manifest)
        require_inside(path, manifest.files)
        if verify:
            verify_files(path, manifest.files)
        return cls(path, manifest)


def _check_sizes(path: Path, manifest: BundleManifest) -> None:
    """Raise ArtifactError where a manifest contradicts itself."""
    remedy = manifest.remedy
    for key in ("graph", "weights"):
        name = getattr(manifest, key)
        if name not in manifest.files:
            raise ArtifactError(f"{path}: '{key}' is {show(name)}, which 'files' lacks; {remedy}")
    if manifest.num_heads % manifest.num_kv_heads:
        raise ArtifactError(
            f"{path}: num_heads {manifest.num_heads} is not a multiple of num_kv_heads "
            f"{manifest.num_kv_heads}; {remedy}"
        )
    tables = manifest.part_bytes.get("tables", 0)
    if 0 < tables < manifest.context * _POSITION_BYTES:  # the KV cache is made of that size
        raise ArtifactError(
            f"{path}: context {manifest.context:,} is more than the {tables:,} bytes of position "
            f"tables hold; {remedy}"
        )
    parts, size = sum(manifest.part_bytes.values()), manifest.files[manifest.weights].size
    if parts > size:
        raise ArtifactError(
            f"{path}: the {parts:,} bytes of part_bytes are more than the {size:,} of "
            f"{manifest.weights}; {remedy}"
        )


def require_inside(directory: Path, names: Iterable[str]) -> None:
    """Raise ArtifactError for a file of a bundle or engine that a link takes out of its folder, or
    that is no plain file (a pipe would be waited for).

    names: what the manifest names; whatever else lies directly in `directory` is looked at too.
    """
    with os.scandir(directory) as entries:
        links = [entry.name for entry in entries if entry.is_symlink()]
    for name in names:
        require_plain(directory / name, ArtifactError)
    for name in (*names, *links):
        if leaves(directory, directory / name):
            raise ArtifactError(
                f"{directory / name} is a link out of the folder; copy the files themselves "
                "(`cp -rL`)"
            )


def hash_file(path: Path) -> FileEntry:
    """Size and sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    size = 0
    with open_plain(path, ArtifactError) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(size=size, sha256=digest.hexdigest())


def hash_files(directory: Path) -> dict[str, FileEntry]:
    """Every file below `directory` except the manifest, by relative name."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(directory).as_posix(): hash_file(p) for p in files}


def verify_files(
    directory: Path,
    files: Mapping[str, FileEntry],
    *,
    record: str = "its manifest",
    remedy: str = "",
) -> None:
    """Compare files with the sizes and hashes in a manifest or report.

    record: where these stand, and remedy: what to do, for messages. A large file that was verified
    before and has the same size, inode and modification time is not read again. Raises
    ArtifactError naming the first file that differs.
    """
    remedy = remedy or f"copy or export {directory} again"
    for name, entry in files.items():
        path = directory / name
        try:
            status = path.stat()
        except OSError:
            raise ArtifactError(f"{path} is missing; {remedy}") from None
        if status.st_size != entry.size:
            raise ArtifactError(
                f"{path} has {status.st_size} bytes, {record} says {entry.size}; {remedy}"
            )
        if is_verified(path, status, entry.sha256):
            continue
        actual = hash_file(path).sha256
        if actual != entry.sha256:
            raise ArtifactError(
                f"{path} was changed: sha256 {actual[:12]}..., {record} says "
                f"{entry.sha256[:12]}...; {remedy}"
            )
        remember(path, status, entry.sha256)


@contextlib.contextmanager
def atomic_directory(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new directory beside `final` that takes its name when the block ends well.

    Links in `final` are followed. On an exception, and on the next run after a kill, the unfinished
    directory is removed (`awq_edge.process.staging`). Raises ConfigError when `final` exists and is
    not to be overwritten or another process is making it, ResourceError when the disk fills up.
    """
    refuse_existing(final, overwrite=overwrite)
    try:
        folder, name = workplace(final)
        folder.mkdir(parents=True, exist_ok=True)
        sweep(final)
        with temporary(folder, name) as work:
            yield work
            publish_directory(work, final, overwrite=overwrite)
    except OSError as error:
        if is_disk_full(error):
            raise ResourceError(
                f"the disk of {final.parent} filled up while {final.name} was written; free some "
                "space or choose another --out"
            ) from None
        raise


def publish_directory(work: Path, final: Path, *, overwrite: bool) -> None:
    """Give a finished directory its final name, after flushing it to disk."""
    for path in work.rglob("*"):
        if path.is_file():
            flush(path)
    flush(work)
    refuse_existing(final, overwrite=overwrite)
    publish(work, final)
    flush(Path(os.path.realpath(final)).parent)


@contextlib.contextmanager
def atomic_file(final: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Yield an empty temporary file beside `final` that replaces it when the block ends well.

    Links in `final` are followed. mode: permissions of a new file; one that is there keeps its own.
    """
    real = Path(os.path.realpath(final))
    kept = stat.S_IMODE(real.stat().st_mode) if real.exists() else None
    sweep(real)
    with temporary(real.parent, real.name, mode=mode) as work:
        yield work
        flush(work)
        if kept is not None:
            work.chmod(kept)
        work.replace(real)


def write_json(path: Path, value: Any) -> None:
    """Write JSON to `path` atomically, indented, keys in the order given."""
    with atomic_file(path) as work:
        work.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
