"""The schema of a bench report. docs/bench.md describes it.

Times are seconds, sizes bytes, rates per second, energies joules. None stands for what could not be
measured here.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from awq_edge.artifacts.schema import Manifest, Record, read_manifest
from awq_edge.run.report import (
    BandwidthReport,
    BundleReport,
    EnvironmentReport,
    MemoryReport,
    SpreadReport,
)


class PlanReport(Record):
    """The plan of the measurement."""

    prompt_lengths: tuple[int, ...]
    generated_lengths: tuple[int, ...]
    batch: Literal[1] = 1  # sequences at a time; a session runs one
    warmup: int
    repeats: int
    seed: int
    prompt_sha256: str  # of the ids of the longest prompt, int64; shorter ones are its beginning
    sampling: Literal["greedy"] = "greedy"
    ignore_eos: Literal[True] = True
    context: int  # positions of the KV cache
    sample_interval: float


class PercentilesReport(Record):
    """Seconds, over `samples` measurements."""

    p50: float
    p90: float
    p99: float
    samples: int


class RepeatReport(Record):
    """One request."""

    ttft: float
    prefill: float  # seconds of all chunks
    prefill_tokens_per_second: float
    # of the steps after the warm-up, their number over their sum, interruptions included
    decode_tokens_per_second: float | None
    tpot: float | None  # median of those steps, which leaves interruptions out
    # seconds of each decode step, the warm-up steps at the beginning included
    steps: tuple[float, ...]
    total: float


class EnergyReport(Record):
    """Energy by one sensor during the repeats of a cell, gross: the idle device's share is in it.
    The first token counts as prefill.

    seconds: sum of the decode windows.
    """

    sensor: str
    covers: str
    joules_per_prompt_token: float | None
    joules_per_generated_token: float | None
    prefill_watts: float | None
    decode_watts: float | None
    decode_seconds: float


class PeakReport(Record):
    """The largest memory of any sample during the repeats of a cell, bytes."""

    anonymous: int | None
    file_backed: int | None
    device: int | None


class CellReport(Record):
    """One pair of lengths."""

    prompt_tokens: int
    generated_tokens: int
    batch: Literal[1] = 1
    # prefill, decode: tokens/s, one value a repeat
    prefill: SpreadReport
    decode: SpreadReport | None
    ttft: PercentilesReport  # one value a repeat
    tpot: PercentilesReport | None  # every step after the warm-up, of all repeats
    bandwidth: BandwidthReport  # at decode's median
    others: float | None  # share of the CPUs that other processes took meanwhile
    peak: PeakReport
    energy: tuple[EnergyReport, ...]
    repeats: tuple[RepeatReport, ...]


class SampleReport(Record):
    """Memory at one moment, bytes. time: seconds since just before the bundle was loaded."""

    time: float
    anonymous: int | None
    file_backed: int | None
    device: int | None


class SensorReport(Record):
    """A sensor and the device that it covers; of an absent one, the reason."""

    name: str
    covers: str | None
    absent: str | None


class ClockReport(Record):
    """Hz, before and after the measurement, and the extremes of all samples."""

    name: str
    before: int | None
    after: int | None
    lowest: int
    highest: int


class ThrottlingReport(Record):
    """Reduced clocks."""

    samples: int
    reasons: dict[str, int]  # number of samples in which each held clocks down
    events: dict[str, int]  # by how much counters grew

    @property
    def seen(self) -> bool:
        """True if any clock was throttled at any time."""
        return bool(self.reasons) or any(self.events.values())


class BenchReport(Manifest):
    """One measurement of `awq-edge bench`."""

    noun: ClassVar[str] = "a bench report of this version"
    remedy: ClassVar[str] = "make it with `awq-edge bench BUNDLE --json FILE`"

    format: Literal["awq-edge-bench-report"] = "awq-edge-bench-report"
    format_version: Literal[1] = 1
    bundle: BundleReport
    manifest_sha256: str  # of the bundle's manifest.json, which has the hashes of all its files
    plan: PlanReport
    interrupted: bool
    load: float
    cells: tuple[CellReport, ...]
    memory: MemoryReport
    memory_samples: tuple[SampleReport, ...]
    sensors: tuple[SensorReport, ...]
    clocks: tuple[ClockReport, ...]
    throttling: ThrottlingReport
    nvpmodel: str | None
    governor: str | None
    environment: EnvironmentReport
    notes: tuple[str, ...]  # warnings to the reader, in words


def read_bench_report(path: Path) -> BenchReport:
    """A report from its file. Raises ArtifactError when it is not one of this version."""
    return read_manifest(BenchReport, path)
