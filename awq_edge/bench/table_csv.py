"""A bench report as CSV: one row a cell, for spreadsheets."""

from __future__ import annotations

import csv
import io

from awq_edge.bench.report import BenchReport, CellReport

_COLUMNS = (
    "prompt_tokens",
    "generated_tokens",
    "batch",
    "repeats",
    *(f"prefill_tokens_per_second_{part}" for part in ("median", "p10", "p90")),
    *(f"decode_tokens_per_second_{part}" for part in ("median", "p10", "p90")),
    *(f"ttft_seconds_{part}" for part in ("p50", "p90", "p99")),
    *(f"tpot_seconds_{part}" for part in ("p50", "p90", "p99")),
    "bytes_per_token",
    "achieved_bytes_per_second",
    "device_bytes_per_second",
    "share_of_device",
    "roofline_tokens_per_second",
    "peak_anonymous_bytes",
    "peak_file_backed_bytes",
    "peak_device_bytes",
)


def to_csv(report: BenchReport) -> str:
    """The cells of a report; empty where a value was not measured. Energy: a pair of columns for
    each sensor that measured it."""
    sensors = list(dict.fromkeys(part.sensor for cell in report.cells for part in cell.energy))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    energies = [
        f"{sensor}_joules_per_{kind}_token"
        for sensor in sensors
        for kind in ("prompt", "generated")
    ]
    writer.writerow([*_COLUMNS, *energies])
    for cell in report.cells:
        writer.writerow([*_row(cell), *_energies(cell, sensors)])
    return stream.getvalue()


def _row(cell: CellReport) -> list[float | int | None]:
    decode, tpot, bandwidth = cell.decode, cell.tpot, cell.bandwidth
    return [
        cell.prompt_tokens,
        cell.generated_tokens,
        cell.batch,
        len(cell.repeats),
        *(cell.prefill.median, cell.prefill.p10, cell.prefill.p90),
        *((decode.median, decode.p10, decode.p90) if decode else (None,) * 3),
        *(cell.ttft.p50, cell.ttft.p90, cell.ttft.p99),
        *((tpot.p50, tpot.p90, tpot.p99) if tpot else (None,) * 3),
        bandwidth.bytes_per_token,
        bandwidth.achieved_bytes_per_second,
        bandwidth.device_bytes_per_second,
        bandwidth.share_of_device,
        bandwidth.roofline_tokens_per_second,
        cell.peak.anonymous,
        cell.peak.file_backed,
        cell.peak.device,
    ]


def _energies(cell: CellReport, sensors: list[str]) -> list[float | None]:
    by_sensor = {part.sensor: part for part in cell.energy}
    values: list[float | None] = []
    for sensor in sensors:
        part = by_sensor.get(sensor)
        values.append(part.joules_per_prompt_token if part else None)
        values.append(part.joules_per_generated_token if part else None)
    return values
