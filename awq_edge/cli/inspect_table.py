"""The result of `awq-edge inspect`, as tables for people."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from awq_edge.inspect.schema import Inspection, WeightsReport
from awq_edge.units import size_text

_PIPE_WIDTH = 160  # columns where there is no terminal to ask: no row is broken


def print_inspection(inspection: Inspection, console: Console, *, hashes: bool) -> None:
    """Print the inspection: the kind, the parts, the bytes that decoding reads, the origin, the
    files."""
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    for line in _what(inspection):
        console.print(line, soft_wrap=True)
    if inspection.parts:
        console.print()
        console.print(_parts(inspection))
    if inspection.dtypes:
        console.print()
        console.print(_dtypes(inspection))
    console.print()
    console.print(_facts(inspection))
    console.print()
    console.print(_files(inspection, hashes))
    for note in inspection.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _what(inspection: Inspection) -> list[str]:
    name = inspection.provenance.model_name
    about = [name] if name else []
    about.append(inspection.model_type or "unknown model_type")
    if inspection.parameters:
        about.append(f"{_count(inspection.parameters)} parameters")
    lines = [
        f"{inspection.kind} {inspection.path}: {', '.join(about)}; "
        f"{size_text(inspection.size)} on disk"
    ]
    sizes = inspection.architecture
    if sizes is not None:
        lines.append(
            f"{sizes.layers} blocks, hidden size {sizes.hidden_size}, {sizes.heads} heads of "
            f"{sizes.head_size} ({sizes.kv_heads} for keys and values), FFN "
            f"{sizes.intermediate_size}, vocabulary {sizes.vocab_size:,}, context {sizes.context:,}"
        )
    return lines


def _parts(inspection: Inspection) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("part", style="bold", no_wrap=True)
    table.add_column("weights are")
    for heading in ("parameters", "size", "bits a weight", "read a token"):
        table.add_column(heading, justify="right", no_wrap=True)
    shared = not any(part.name == "lm_head" for part in inspection.parts)
    for part in inspection.parts:
        table.add_row(
            part.name,
            _formats(part) + (", lm_head too" if part.name == "embedding" and shared else ""),
            "-" if part.parameters is None else f"{part.parameters:,}",
            size_text(part.bytes),
            _bits(part.bits_per_weight),
            size_text(part.bytes_per_token),
        )
    table.add_row(
        "all",
        "",
        "-" if inspection.parameters is None else f"{inspection.parameters:,}",
        size_text(inspection.weight_bytes),
        _bits(inspection.bits_per_weight),
        size_text(inspection.weight_bytes_per_token),
        style="bold",
    )
    return table


def _formats(part: WeightsReport) -> str:
    if len(part.formats) == 1:
        return next(iter(part.formats))
    ranked = sorted(part.formats.items(), key=lambda item: -(item[1] or 0))
    total = part.parameters or 1
    return "; ".join(
        name if count is None else f"{name} ({count / total:.1%})" for name, count in ranked
    )


def _dtypes(inspection: Inspection) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("dtype", style="bold", no_wrap=True)
    table.add_column("tensors", justify="right")
    table.add_column("size", justify="right")
    for name, dtype in inspection.dtypes.items():
        table.add_row(name, f"{dtype.tensors:,}", size_text(dtype.bytes))
    return table


def _facts(inspection: Inspection) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    how, made = inspection.quantization, inspection.provenance
    if how is not None:
        blocks = next((part for part in inspection.parts if part.name == "blocks"), None)
        mostly = "mostly " if blocks is not None and len(blocks.formats) > 1 else ""
        table.add_row(
            "quantization",
            f"{how.method}, {mostly}{how.bits}-bit, group {how.group_size}, {how.scheme}",
        )
    if inspection.quantized_bits_per_weight is not None:
        bits = _bits(inspection.quantized_bits_per_weight)
        table.add_row("quantized linears", f"{bits} bits a weight, with scales and zero points")
    if inspection.kv_bytes_per_token is not None:
        dtype = "16 bits" if inspection.bundle is None else inspection.bundle.activation_dtype
        table.add_row("KV cache", f"{inspection.kv_bytes_per_token:,} bytes a token ({dtype})")
    for reason, count in Counter(inspection.unquantized.values()).items():
        table.add_row("unquantized", f"{count:,} linears: {reason}")
    if inspection.bundle is not None:
        target = inspection.bundle
        newest = f" {target.min_runtime_version} or later" if target.min_runtime_version else ""
        opset = "" if target.opset is None else f", opset {target.opset}"
        level = target.accuracy_level
        accuracy = "" if level is None else f", accuracy level {level}"
        table.add_row(
            "made for",
            f"{target.runtime}{newest}{opset}, {target.activation_dtype}{accuracy}, prefill chunk "
            f"{target.prefill_chunk}",
        )
    if inspection.sampling is not None:
        of = {"bundle": "the bundle's", "model": "the model's", "default": "it names none"}
        drawn = f"{inspection.sampling.keys} ({of[inspection.sampling.source]})"
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


def _files(inspection: Inspection, hashes: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("file", style="bold", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    checked = any(file.status != "unchecked" for file in inspection.files)
    if checked:
        table.add_column("", no_wrap=True)
    if hashes:
        table.add_column("sha256", overflow="fold")
    for file in inspection.files:
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


def _bits(bits: float | None) -> str:
    return "-" if bits is None else f"{bits:.2f}"
