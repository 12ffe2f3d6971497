"""What `awq-edge inspect` found, as tables for people."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from awq_edge.inspect.schema import Inspection, WeightPart

_PIPE_WIDTH = 160  # columns where there is no terminal to ask: no row is broken


def print_inspection(found: Inspection, console: Console, *, hashes: bool) -> None:
    """Print it: what it is, its parts, what decoding reads, where it comes from, its files."""
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    for line in _what(found):
        console.print(line, soft_wrap=True)
    if found.parts:
        console.print()
        console.print(_parts(found))
    if found.dtypes:
        console.print()
        console.print(_dtypes(found))
    console.print()
    console.print(_facts(found))
    console.print()
    console.print(_files(found, hashes))
    for note in found.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _what(found: Inspection) -> list[str]:
    name = found.provenance.model_name
    about = [name] if name else []
    about.append(found.model_type or "unknown model_type")
    if found.parameters:
        about.append(f"{_count(found.parameters)} parameters")
    lines = [f"{found.kind} {found.path}: {', '.join(about)}; {_size(found.size)} on disk"]
    sizes = found.architecture
    if sizes is not None:
        lines.append(
            f"{sizes.layers} blocks, hidden size {sizes.hidden_size}, {sizes.heads} heads of "
            f"{sizes.head_size} ({sizes.kv_heads} for keys and values), FFN "
            f"{sizes.intermediate_size}, vocabulary {sizes.vocab_size:,}, context {sizes.context:,}"
        )
    return lines


def _parts(found: Inspection) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("part", style="bold", no_wrap=True)
    table.add_column("weights are")
    for heading in ("parameters", "size", "bits a weight", "read a token"):
        table.add_column(heading, justify="right", no_wrap=True)
    shared = not any(part.name == "lm_head" for part in found.parts)
    for part in found.parts:
        table.add_row(
            part.name,
            _formats(part) + (", lm_head too" if part.name == "embedding" and shared else ""),
            "-" if part.parameters is None else f"{part.parameters:,}",
            _size(part.bytes),
            _bits(part.bits_per_weight),
            _size(part.bytes_per_token),
        )
    table.add_row(
        "all",
        "",
        "-" if found.parameters is None else f"{found.parameters:,}",
        _size(found.weight_bytes),
        _bits(found.bits_per_weight),
        "-" if found.weight_bytes_per_token is None else _size(found.weight_bytes_per_token),
        style="bold",
    )
    return table


def _formats(part: WeightPart) -> str:
    if len(part.formats) == 1:
        return next(iter(part.formats))
    ranked = sorted(part.formats.items(), key=lambda item: -(item[1] or 0))
    total = part.parameters or 1
    return "; ".join(
        name if count is None else f"{name} ({count / total:.1%})" for name, count in ranked
    )


def _dtypes(found: Inspection) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("dtype", style="bold", no_wrap=True)
    table.add_column("tensors", justify="right")
    table.add_column("size", justify="right")
    for name, dtype in found.dtypes.items():
        table.add_row(name, f"{dtype.tensors:,}", _size(dtype.bytes))
    return table


def _facts(found: Inspection) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    how, made = found.quantization, found.provenance
    if how is not None:
        table.add_row(
            "quantization", f"{how.method}, {how.bits}-bit, group {how.group_size}, {how.scheme}"
        )
    if found.quantized_bits_per_weight is not None:
        bits = _bits(found.quantized_bits_per_weight)
        table.add_row("quantized linears", f"{bits} bits a weight, with scales and zero points")
    if found.kv_bytes_per_token is not None:
        dtype = "16 bits" if found.bundle is None else found.bundle.activation_dtype
        table.add_row("KV cache", f"{found.kv_bytes_per_token:,} bytes a token ({dtype})")
    for reason, count in Counter(found.unquantized.values()).items():
        table.add_row("unquantized", f"{count:,} linears: {reason}")
    if found.bundle is not None:
        target = found.bundle
        newest = f" {target.min_runtime_version} or later" if target.min_runtime_version else ""
        opset = "" if target.opset is None else f", opset {target.opset}"
        level = target.accuracy_level
        accuracy = "" if level is None else f", accuracy level {level}"
        table.add_row(
            "made for",
            f"{target.runtime}{newest}{opset}, {target.activation_dtype}{accuracy}, prefill chunk "
            f"{target.prefill_chunk}",
        )
    if found.sampling is not None:
        of = {"bundle": "the bundle's", "model": "the model's", "default": "it names none"}
        drawn = f"{found.sampling.keys} ({of[found.sampling.source]})"
        table.add_row("chat and serve draw", drawn)
    if made.calibration:
        table.add_row("calibration", made.calibration)
    for name, value in made.source.items():
        table.add_row(f"source {name}", value)
    if made.versions:
        table.add_row("versions", ", ".join(f"{n} {v}" for n, v in made.versions.items()))
    if made.commit:
        table.add_row("commit", made.commit)
    if made.time:
        table.add_row("quantized", made.time)
    return table


def _files(found: Inspection, hashes: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("file", style="bold", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    checked = any(file.status != "unchecked" for file in found.files)
    if checked:
        table.add_column("", no_wrap=True)
    if hashes:
        table.add_column("sha256", overflow="fold")
    for file in found.files:
        row = [file.name, "-" if file.size is None else f"{file.size:,}"]
        if checked:
            row.append("" if file.status == "unchecked" else file.status)
        if hashes:
            row.append(file.sha256 or "")
        table.add_row(*row)
    return table


def _count(parameters: int) -> str:
    for unit, factor in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if parameters >= factor:
            return f"{parameters / factor:.2f} {unit}"
    return str(parameters)


def _size(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:,.2f} {unit}"
    return f"{size} B"


def _bits(bits: float | None) -> str:
    return "-" if bits is None else f"{bits:.2f}"
