"""The schema of the run report. docs/run-report.md describes every key; a test holds them equal.

Times are seconds, sizes bytes, rates per second. None stands for what could not be measured here.
"""

from __future__ import annotations

from typing import Literal

from awq_edge.artifacts.schema import Manifest, Record


class BundleReport(Record):
    """The bundle."""

    path: str
    model_name: str
    model_type: str
    runtime: str
    method: str
    bits: int
    group_size: int
    scheme: str
    lm_head_bits: int
    activation_dtype: str
    accuracy_level: int | None
    context: int  # of its export
    commit: str | None  # of the awq-edge that exported it


class RequestReport(Record):
    """The request."""

    prompt: str
    prompt_format: Literal["raw", "chat"]
    prompt_tokens: int
    max_new_tokens: int | None  # None without a limit
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int  # the one used, given or drawn
    stop: tuple[str, ...]
    ignore_eos: bool
    context: int  # positions of the KV cache of this run


class ResultReport(Record):
    """The generated text."""

    text: str
    token_ids: tuple[int, ...]  # generated, without the stop token
    generated_tokens: int
    finish_reason: Literal["stop", "length", "context", "cancelled"]
    stop_string: str | None
    thoughts: str = ""  # of a reasoning model, before the text
    thought_tokens: int = 0  # number of their ids


class SpreadReport(Record):
    """Median, 10th and 90th percentile over `samples` measurements."""

    median: float
    p10: float
    p90: float
    samples: int


class LatencyReport(Record):
    """Seconds."""

    load: float  # hashes checked and session opened
    load_verify: float
    load_session: float
    # ttft: from the request to the first token; tpot: of the decode steps after the warm-up
    ttft: float | None
    prefill: float
    tpot_p50: float | None
    tpot_p95: float | None
    tpot_p99: float | None
    total: float  # the request from its arrival to its end


class ThroughputReport(Record):
    """Tokens/s. prefill: one sample a chunk. decode: one sample a step after `warmup_steps`."""

    prefill: SpreadReport | None
    decode: SpreadReport | None
    warmup_steps: int


class BandwidthReport(Record):
    """Memory traffic of decoding.

    bytes_per_token: weights and, at the mean position, KV cache. achieved: bytes_per_token over the
        median TPOT. device: the device's bandwidth, from the recipe or measured just after the run.
        roofline: tokens/s at the device's bandwidth.
    """

    weight_bytes_per_token: int
    kv_bytes_per_token: int
    bytes_per_token: int
    achieved_bytes_per_second: float | None
    device_bytes_per_second: float | None
    device_source: Literal["recipe", "measured"] | None
    share_of_device: float | None
    roofline_tokens_per_second: float | None


class PredictedMemoryReport(Record):
    """Bytes, from the manifest alone."""

    weights: int
    kv_cache: int
    activations: int
    overhead: int
    total: int


class MeasuredMemoryReport(Record):
    """Bytes of resident memory of this process.

    loaded: added by loading, weights and KV cache. anonymous: allocations, which must fit.
        file_backed: mapped files, which the system may drop.
    on_device: the session's weights, KV cache and buffers in the GPU's memory.
    device_before_load, device_after_load, device_peak: in use on the whole GPU, other programs
        included, by device_source: before loading, after it, and at the peak.
    nvmap: allocated by NvMap after loading; Jetson only.
    """

    before_load: int | None
    after_load: int | None
    loaded: int | None
    after_run_anonymous: int | None
    after_run_file_backed: int | None
    peak: int | None
    on_device: int | None
    device_before_load: int | None
    device_after_load: int | None
    device_peak: int | None
    device_source: str | None
    nvmap: int | None


class MemoryReport(Record):
    """The memory fit.

    On a GPU, loaded is the session's weights and KV cache, and there is no peak, unless the whole
    GPU was measured: then loaded and peak are the growth of its use, against the prediction without
    the overhead.
    """

    predicted: PredictedMemoryReport
    measured: MeasuredMemoryReport
    loaded_over_predicted: float | None  # measured loaded / predicted weights + KV cache
    peak_over_predicted: float | None  # measured peak / predicted total
    device: int | None  # bytes that the device has


class EnvironmentReport(Record):
    """The machine."""

    backend: str
    device: str
    architecture: str
    cores: int
    threads: int | None
    memory: int | None
    power_mode: str | None
    versions: dict[str, str]
    commit: str | None  # of the awq-edge that ran
    time: str  # ISO 8601, UTC


class RunReport(Manifest):
    """The report of one `awq-edge run`."""

    format: Literal["awq-edge-run-report"] = "awq-edge-run-report"
    format_version: Literal[1] = 1
    bundle: BundleReport
    request: RequestReport
    result: ResultReport
    latency: LatencyReport
    throughput: ThroughputReport
    bandwidth: BandwidthReport
    memory: MemoryReport
    environment: EnvironmentReport
