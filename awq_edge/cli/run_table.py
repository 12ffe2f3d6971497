"""The run report as a table for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from awq_edge.run.report import MeasuredMemoryReport, RunReport, SpreadReport
from awq_edge.units import size_text

_WEIGHTS = {"none": "not quantized"}


def print_report(report: RunReport, console: Console) -> None:
    """Print the report: speed first, then the memory fit, then the machine."""
    console.print(_speed(report))
    console.print()
    console.print(_memory(report))
    console.print()
    bundle, environment = report.bundle, report.environment
    weights = _WEIGHTS.get(
        bundle.method, f"{bundle.bits}-bit {bundle.method}, group {bundle.group_size}"
    )
    level = bundle.accuracy_level
    accuracy = "" if level is None else f", accuracy level {level}"
    console.print(
        f"{bundle.model_name}: {weights}, lm_head {bundle.lm_head_bits}-bit, "
        f"{bundle.activation_dtype}{accuracy}, context {report.request.context}",
        soft_wrap=True,
    )
    mode = f", {environment.power_mode}" if environment.power_mode else ""
    threads = "" if environment.threads is None else f", {environment.threads} threads"
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    console.print(
        f"{environment.device}{threads}{mode}; {versions}; "
        f"commit {environment.commit or 'unknown'}",
        soft_wrap=True,
    )
    if report.result.finish_reason == "cancelled":
        console.print("interrupted: the report covers what ran until then", style="bold")


def _thoughts(report: RunReport) -> str:
    count = report.result.thought_tokens
    if not count:
        return ""
    return f"; {count} of them thoughts" + ("" if report.result.text else ", and no answer")


def _speed(report: RunReport) -> Table:
    latency, bandwidth = report.latency, report.bandwidth
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row(
        "tokens",
        f"{report.request.prompt_tokens} prompt + {report.result.generated_tokens} generated "
        f"({report.result.finish_reason}{_thoughts(report)})",
    )
    table.add_row("load", f"{latency.load:.2f} s ({latency.load_verify:.2f} s checking hashes)")
    table.add_row("TTFT", _milliseconds(latency.ttft))
    table.add_row("prefill", _rate(report.throughput.prefill, "chunks"))
    table.add_row("decode", _rate(report.throughput.decode, "steps"))
    table.add_row(
        "TPOT p50 / p95 / p99",
        " / ".join(
            _milliseconds(t) for t in (latency.tpot_p50, latency.tpot_p95, latency.tpot_p99)
        ),
    )
    table.add_row(
        "bytes per token",
        f"{size_text(bandwidth.weight_bytes_per_token)} weights + "
        f"{size_text(bandwidth.kv_bytes_per_token)} KV cache",
    )
    table.add_row("achieved", _achieved(report))
    return table


def _achieved(report: RunReport) -> str:
    bandwidth = report.bandwidth
    if bandwidth.achieved_bytes_per_second is None:
        return "-"
    text = f"{bandwidth.achieved_bytes_per_second / 1e9:.2f} GB/s"
    if bandwidth.device_bytes_per_second and bandwidth.share_of_device is not None:
        text += (
            f", {bandwidth.share_of_device:.0%} of {bandwidth.device_bytes_per_second / 1e9:.1f} "
            f"GB/s ({bandwidth.device_source}); roofline "
            f"{bandwidth.roofline_tokens_per_second:.1f} tokens/s"
        )
    return text


def _memory(report: RunReport) -> Table:
    predicted, measured = report.memory.predicted, report.memory.measured
    table = Table(box=None, pad_edge=False)
    table.add_column("memory", style="bold", no_wrap=True)
    table.add_column("predicted", justify="right")
    table.add_column("measured", justify="right")
    table.add_row("weights", size_text(predicted.weights), "")
    table.add_row("KV cache", size_text(predicted.kv_cache), "")
    loaded = predicted.weights + predicted.kv_cache
    table.add_row("weights + KV cache", size_text(loaded), size_text(measured.loaded))
    table.add_row("activations", size_text(predicted.activations), "")
    table.add_row("overhead", size_text(predicted.overhead), size_text(measured.before_load))
    if measured.on_device is not None:
        on_device = loaded + predicted.activations
        table.add_row("on the GPU", size_text(on_device), size_text(measured.on_device))
        _add_device_use(table, on_device, measured)
    table.add_row("total, peak", size_text(predicted.total), size_text(measured.peak))
    return table


def _add_device_use(table: Table, predicted: int, measured: MeasuredMemoryReport) -> None:
    """Add the growth of the whole GPU's use, where it was measured."""
    if measured.device_peak is None or measured.device_before_load is None:
        return
    grown = measured.device_peak - measured.device_before_load
    source = f"({measured.device_source})"
    table.add_row(f"GPU, peak {source}", size_text(predicted), size_text(grown))


def _rate(spread: SpreadReport | None, what: str) -> str:
    if spread is None:
        return "-"
    text = f"{spread.median:.2f} tokens/s"
    if spread.samples > 1:
        text += f" (p10 {spread.p10:.2f}, p90 {spread.p90:.2f} of {spread.samples} {what})"
    return text


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f} ms"
