"""The figures of /metrics, in Prometheus' text format. docs/serve.md lists every name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from awq_edge.runtime.generation import Generation
from awq_edge.runtime.memory import read_process_memory
from awq_edge.runtime.session import SessionMemory
from awq_edge.serve.scheduler import SchedulerState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Seconds. TTFT holds the time in the queue; TPOT goes from a demo on a CPU to a 70 B on a board.
_TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TPOT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

Metric = CounterMetricFamily | GaugeMetricFamily


class Metrics:
    """Counters of one server. Safe for use from the worker and the event loop."""

    def __init__(self, state: Callable[[], SchedulerState], memory: SessionMemory) -> None:
        """state: called at every scrape.
        memory: the session's, until `finished` tells a newer one.
        """
        self._registry = CollectorRegistry()
        counter = self._counter
        self._requests = Counter(
            "awq_edge_requests",
            "HTTP requests by endpoint and status; 499: the client went away",
            ["endpoint", "status"],
            registry=self._registry,
        )
        self._prompt = counter("prompt_tokens", "Tokens of prompts")
        self._reused = counter("reused_tokens", "Tokens of prompts that the KV cache had already")
        self._generated = counter("generated_tokens", "Tokens generated")
        histogram = self._histogram
        self._queue = histogram("queue_seconds", "From arrival to the worker", _TTFT_BUCKETS)
        self._ttft = histogram(
            "time_to_first_token_seconds", "TTFT: from arrival to the first token", _TTFT_BUCKETS
        )
        self._tpot = histogram(
            "time_per_output_token_seconds", "TPOT: of every token but the first", _TPOT_BUCKETS
        )
        self._memory, self._kept = memory, 0
        self._registry.register(_State(state, lambda: self._memory, lambda: self._kept))

    def started(self, queue_seconds: float) -> None:
        """A job has reached the worker."""
        self._queue.observe(queue_seconds)

    def finished(self, generation: Generation, memory: SessionMemory, kept: int) -> None:
        """A job has ended, or was cancelled on its way.

        memory: the session's.
        kept: bytes of the copy of another conversation's KV cache.
        """
        self._memory, self._kept = memory, kept
        timings = generation.timings
        self._prompt.inc(timings.prompt_tokens)
        self._reused.inc(timings.reused_tokens)
        self._generated.inc(timings.generated_tokens)
        if timings.ttft is not None:
            self._ttft.observe(timings.ttft)
        for seconds in timings.steps:
            self._tpot.observe(seconds)

    def answered(self, endpoint: str, status: int) -> None:
        """An HTTP request has ended. endpoint: the route, never a client's own text."""
        self._requests.labels(endpoint, str(status)).inc()

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"awq_edge_{name}", text, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"awq_edge_{name}", text, buckets=buckets, registry=self._registry)


class _State(Collector):
    """The queue and the memory at the moment of a scrape."""

    def __init__(
        self,
        state: Callable[[], SchedulerState],
        memory: Callable[[], SessionMemory],
        kept: Callable[[], int],
    ) -> None:
        self._state = state
        self._memory = memory
        self._kept = kept

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        yield GaugeMetricFamily("awq_edge_queue_length", "Jobs that wait", value=state.queued)
        yield GaugeMetricFamily("awq_edge_running", "Jobs that run: 0 or 1", value=state.running)
        jobs = CounterMetricFamily("awq_edge_jobs", "Jobs by what became of them", labels=["state"])
        for name in ("submitted", "refused", "completed", "cancelled", "failed"):
            jobs.add_metric([name], getattr(state, name))
        yield jobs
        memory = GaugeMetricFamily("awq_edge_memory_bytes", "Memory by part", labels=["part"])
        process, session, kept = read_process_memory(), self._memory(), self._kept()
        parts = {
            "resident": process.rss,
            "resident_peak": process.peak_rss,
            "anonymous": process.anonymous,
            "file_backed": process.file_backed,
            "kv_cache": session.kv_cache,
            "kept_cache": kept,
            "device": session.on_device,
        }
        for name, size in parts.items():
            if size is not None:
                memory.add_metric([name], size)
        yield memory
