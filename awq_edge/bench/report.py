"""The schema of a bench report. docs/bench.md describes it.

Times are seconds, sizes bytes, rates per second, energies joules. None stands for what could not be
measured here.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from awq_edge.artifacts.schema import Manifest, Record, read_manifest
from awq_edge.run.report import (
    BandwidthPart,
    BundlePart,
    EnvironmentPart,
    MemoryPart,
    SpreadPart,
)


class PlanPart(Record):
    """What was wanted. batch: sequences at a time; a session runs one. prompt_sha256: of the ids of
    the longest prompt, int64; shorter ones are its beginning. context: positions of the cache."""

    prompt_lengths: tuple[int, ...]
    generated_lengths: tuple[int, ...]
    batch: Literal[1] = 1
    warmup: int
    repeats: int
    seed: int
    prompt_sha256: str
    sampling: Literal["greedy"] = "greedy"
    ignore_eos: Literal[True] = True
    context: int
    sample_interval: float


class PercentilesPart(Record):
    """Seconds, over `samples` measurements."""

    p50: float
    p90: float
    p99: float
    samples: int


class RepeatPart(Record):
    """One request. prefill: seconds of all chunks. steps: seconds of each decode step, the first
    ones, which are warm-up, included. Of the steps that count: decode_tokens_per_second, their
    number over their sum, with what interrupted them; tpot, their median, without."""

    ttft: float
    prefill: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float | None
    tpot: float | None
    steps: tuple[float, ...]
    total: float


class EnergyPart(Record):
    """What one sensor measured during the repeats of a cell, gross: what the device takes when idle
    is in it. The first token counts as prefill. seconds: that the windows of decoding lasted."""

    sensor: str
    covers: str
    joules_per_prompt_token: float | None
    joules_per_generated_token: float | None
    prefill_watts: float | None
    decode_watts: float | None
    decode_seconds: float


class PeakPart(Record):
    """The most that samples saw during the repeats of a cell, bytes."""

    anonymous: int | None
    file_backed: int | None
    device: int | None


class CellPart(Record):
    """One pair of lengths. prefill, decode: tokens/s, one value a repeat. ttft: one value a repeat.
    tpot: every step that counts, of all repeats. bandwidth: at decode's median. others: share of
    the CPUs that other processes took meanwhile."""

    prompt_tokens: int
    generated_tokens: int
    batch: Literal[1] = 1
    prefill: SpreadPart
    decode: SpreadPart | None
    ttft: PercentilesPart
    tpot: PercentilesPart | None
    bandwidth: BandwidthPart
    others: float | None
    peak: PeakPart
    energy: tuple[EnergyPart, ...]
    repeats: tuple[RepeatPart, ...]


class SamplePart(Record):
    """Memory at one moment, bytes. time: seconds since just before the bundle was loaded."""

    time: float
    anonymous: int | None
    file_backed: int | None
    device: int | None


class SensorPart(Record):
    """A sensor and what its figures are of; of one that is absent, the reason."""

    name: str
    covers: str | None
    absent: str | None


class ClockPart(Record):
    """Hz, before and after the measurement, and the extremes of all samples."""

    name: str
    before: int | None
    after: int | None
    lowest: int
    highest: int


class ThrottlingPart(Record):
    """reasons: samples in which each held clocks down. events: by how much counters grew."""

    samples: int
    reasons: dict[str, int]
    events: dict[str, int]

    @property
    def seen(self) -> bool:
        """Whether anything was throttled at any time."""
        return bool(self.reasons) or any(self.events.values())


class BenchReport(Manifest):
    """What one `awq-edge bench` measured. manifest_sha256: of the bundle's manifest.json, which has
    the hashes of all its files. notes: what a reader should know, in words."""

    noun: ClassVar[str] = "a bench report of this version"
    remedy: ClassVar[str] = "make it with `awq-edge bench BUNDLE --json FILE`"

    format: Literal["awq-edge-bench-report"] = "awq-edge-bench-report"
    format_version: Literal[1] = 1
    bundle: BundlePart
    manifest_sha256: str
    plan: PlanPart
    interrupted: bool
    load: float
    cells: tuple[CellPart, ...]
    memory: MemoryPart
    memory_samples: tuple[SamplePart, ...]
    sensors: tuple[SensorPart, ...]
    clocks: tuple[ClockPart, ...]
    throttling: ThrottlingPart
    nvpmodel: str | None
    governor: str | None
    environment: EnvironmentPart
    notes: tuple[str, ...]


def read_bench_report(path: Path) -> BenchReport:
    """A report from its file. Raises ArtifactError when it is not one of this version."""
    return read_manifest(BenchReport, path)
