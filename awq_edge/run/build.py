"""The report of one generation, made from the model, the request and the timings."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Literal

from awq_edge.artifacts.directories import BundleManifest
from awq_edge.artifacts.provenance import source_commit, versions
from awq_edge.device.cpu import CpuInfo, describe_cpu
from awq_edge.run.report import (
    BandwidthReport,
    BundleReport,
    EnvironmentReport,
    LatencyReport,
    MeasuredMemoryReport,
    MemoryReport,
    PredictedMemoryReport,
    RequestReport,
    ResultReport,
    RunReport,
    SpreadReport,
    ThroughputReport,
)
from awq_edge.runtime.generation import Generation, Request
from awq_edge.runtime.memory import (
    PredictedMemory,
    ProcessMemory,
    kv_cache_bytes,
    predict_memory,
)
from awq_edge.runtime.metrics import Spread, Timings
from awq_edge.runtime.model import LoadFigures, Model
from awq_edge.runtime.session import SessionMemory

_PACKAGES = ("numpy", "tokenizers")


def build_run_report(
    model: Model,
    request: Request,
    generation: Generation,
    *,
    prompt: str,
    prompt_format: Literal["raw", "chat"],
    after: ProcessMemory,
    device_bandwidth: float | None = None,
    bandwidth_source: Literal["recipe", "measured"] | None = None,
) -> RunReport:
    """The report of one generation on a loaded model.

    after: this process's memory when the generation had ended.
    device_bandwidth: bytes/s.
    """
    manifest, timings = model.manifest, generation.timings
    cpu = describe_cpu()
    decode = timings.decode_tokens_per_second
    return RunReport(
        bundle=bundle_report(model),
        request=RequestReport(
            prompt=prompt,
            prompt_format=prompt_format,
            prompt_tokens=timings.prompt_tokens,
            max_new_tokens=request.max_new_tokens,
            temperature=request.sampling.temperature,
            top_k=request.sampling.top_k,
            top_p=request.sampling.top_p,
            min_p=request.sampling.min_p,
            repetition_penalty=request.sampling.repetition_penalty,
            seed=generation.seed,
            stop=request.stop,
            ignore_eos=bool(model.stop_token_ids) and not request.stop_token_ids,
            context=model.session.context,
        ),
        result=ResultReport(
            text=generation.text,
            token_ids=generation.ids,
            generated_tokens=len(generation.ids),
            finish_reason=generation.finish_reason,
            stop_string=generation.stop_string,
            thoughts=generation.thoughts,
            thought_tokens=generation.thought_tokens,
        ),
        latency=_latency(model.load_figures, timings),
        throughput=ThroughputReport(
            prefill=spread_report(timings.prefill_tokens_per_second),
            decode=spread_report(decode),
            warmup_steps=len(timings.steps) - len(timings.measured_steps),
        ),
        bandwidth=bandwidth_report(
            manifest,
            timings,
            decode.median if decode else None,
            device_bandwidth,
            bandwidth_source,
        ),
        memory=memory_report(model, after, cpu),
        environment=environment_report(model, cpu),
    )


def mean_kv_bytes_per_token(manifest: BundleManifest, timings: Timings) -> int:
    """Bytes of the KV cache that a decode step reads, at the mean position of the steps."""
    warmup = len(timings.steps) - len(timings.measured_steps)
    mean_length = timings.prompt_tokens + warmup + (len(timings.measured_steps) + 1) // 2
    return kv_cache_bytes(manifest, mean_length)


def bundle_report(model: Model) -> BundleReport:
    """A loaded bundle's part of the report."""
    manifest = model.manifest
    return BundleReport(
        path=str(model.bundle.path),
        model_name=manifest.model_name,
        model_type=manifest.model_type,
        runtime=manifest.runtime,
        method=manifest.method,
        bits=manifest.bits,
        group_size=manifest.group_size,
        scheme=manifest.scheme,
        lm_head_bits=manifest.lm_head_bits,
        activation_dtype=manifest.activation_dtype,
        accuracy_level=manifest.accuracy_level,
        context=manifest.context,
        commit=manifest.commit,
    )


def _latency(load: LoadFigures, timings: Timings) -> LatencyReport:
    tpot = timings.tpot
    return LatencyReport(
        load=load.verify_seconds + load.session_seconds,
        load_verify=load.verify_seconds,
        load_session=load.session_seconds,
        ttft=timings.ttft,
        prefill=timings.prefill_seconds,
        tpot_p50=tpot.p50 if tpot else None,
        tpot_p95=tpot.p95 if tpot else None,
        tpot_p99=tpot.p99 if tpot else None,
        total=timings.total,
    )


def spread_report(spread: Spread | None) -> SpreadReport | None:
    """A spread in the report's form."""
    if spread is None:
        return None
    return SpreadReport(median=spread.median, p10=spread.p10, p90=spread.p90, samples=spread.count)


def bandwidth_report(
    manifest: BundleManifest,
    timings: Timings,
    decode_rate: float | None,
    device: float | None,
    source: Literal["recipe", "measured"] | None,
) -> BandwidthReport:
    """Memory traffic of decoding at a rate, tokens/s, and its share of a device's, bytes/s."""
    kv_bytes = mean_kv_bytes_per_token(manifest, timings)
    total = manifest.bytes_per_token + kv_bytes
    achieved = None if decode_rate is None else total * decode_rate
    return BandwidthReport(
        weight_bytes_per_token=manifest.bytes_per_token,
        kv_bytes_per_token=kv_bytes,
        bytes_per_token=total,
        achieved_bytes_per_second=achieved,
        device_bytes_per_second=device,
        device_source=source if device is not None else None,
        share_of_device=achieved / device if achieved is not None and device else None,
        roofline_tokens_per_second=device / total if device else None,
    )


def memory_report(model: Model, after: ProcessMemory, cpu: CpuInfo) -> MemoryReport:
    """The memory fit of a loaded bundle. after: this process's memory when it had run."""
    predicted = predict_memory(model.manifest, model.session.context)
    before, loaded = model.load_figures.before.rss, model.load_figures.after.rss
    growth = loaded - before if loaded is not None and before is not None else None
    session = model.session.memory
    measured = session.measured
    loaded_share, peak_share = _fit(predicted, session, growth, after.peak_rss)
    return MemoryReport(
        predicted=PredictedMemoryReport(
            weights=predicted.weights,
            kv_cache=predicted.kv_cache,
            activations=predicted.activations,
            overhead=predicted.overhead,
            total=predicted.total,
        ),
        measured=MeasuredMemoryReport(
            before_load=before,
            after_load=loaded,
            loaded=growth,
            after_run_anonymous=after.anonymous,
            after_run_file_backed=after.file_backed,
            peak=after.peak_rss,
            on_device=session.on_device,
            device_before_load=None if measured is None else measured.before,
            device_after_load=None if measured is None else measured.loaded,
            device_peak=None if measured is None else measured.peak,
            device_source=None if measured is None else measured.source,
            nvmap=None if measured is None else measured.nvmap,
        ),
        loaded_over_predicted=loaded_share,
        peak_over_predicted=peak_share,
        device=cpu.memory_bytes if session.on_device is None else session.device,
    )


def _fit(
    predicted: PredictedMemory, session: SessionMemory, growth: int | None, peak_rss: int | None
) -> tuple[float | None, float | None]:
    """Measured over predicted: of weights and KV cache, and of the peak.

    growth: resident bytes that loading added. On a GPU the process's host memory is no limit, and
        does not count.
    """
    resident = predicted.weights + predicted.kv_cache
    measured, workspace = session.measured, session.workspace or 0
    if measured is not None:
        grown = measured.loaded - measured.before
        # CUDA's own context, which is most of the overhead, is in every figure.
        without_overhead = predicted.total - predicted.overhead
        return (
            (grown - workspace) / resident,
            (measured.peak - measured.before) / without_overhead,
        )
    if session.on_device is not None:
        return (session.on_device - workspace) / resident, None
    return (
        None if growth is None else growth / resident,
        None if peak_rss is None else peak_rss / predicted.total,
    )


def environment_report(model: Model, cpu: CpuInfo) -> EnvironmentReport:
    """The machine and the packages that run a loaded bundle."""
    info = model.session.info
    return EnvironmentReport(
        backend=info.backend,
        device=info.device,
        architecture=cpu.architecture,
        cores=cpu.cores,
        threads=info.threads,
        memory=cpu.memory_bytes,
        power_mode=cpu.power_mode,
        versions=versions(_PACKAGES) | info.versions,
        commit=source_commit(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
