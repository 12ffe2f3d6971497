"""The run report: its schema is the documented one, and its figures belong together."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from awq_edge.cli.run_table import print_report
from awq_edge.recipe.validation import dotted_keys
from awq_edge.run.report import RunReport
from awq_edge.run.run import DEFAULT_NEW_TOKENS, run
from awq_edge.runtime.memory import kv_cache_bytes
from awq_edge.runtime.metrics import WARMUP_STEPS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "run-report.md"


@pytest.fixture(scope="module")
def report(tiny_bundle: Path) -> RunReport:
    shown: list[str] = []
    made = run(
        tiny_bundle,
        "Once upon a time",
        max_new_tokens=20,
        ignore_eos=True,
        threads=1,
        on_text=shown.append,
    )
    assert "".join(shown) == made.result.text
    return made


def test_the_page_describes_every_key_and_no_other() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n## Keys\n")[2]
    described = re.findall(r"^\| `([a-z_0-9.]+)` \| .*\S.* \|$", section, re.MULTILINE)
    assert len(set(described)) == len(described)
    # Both spreads are of one model; where a part may be missing, so are the keys below it.
    keys = set(dotted_keys(RunReport))
    spread = {"median", "p10", "p90", "samples"}
    for part in ("throughput.prefill", "throughput.decode"):
        keys -= {part} | {key for key in keys if key.startswith(f"{part}[]")}
        keys |= {f"{part}.{name}" for name in spread}
    assert set(described) == keys


def test_json_round_trip(report: RunReport) -> None:
    assert RunReport.model_validate_json(report.model_dump_json()) == report


def test_figures_belong_together(report: RunReport, tiny_bundle: Path) -> None:
    result, latency, bandwidth = report.result, report.latency, report.bandwidth
    assert result.generated_tokens == len(result.token_ids) == 20
    assert result.finish_reason == "length"
    assert latency.load == pytest.approx(latency.load_verify + latency.load_session)
    assert latency.ttft is not None and latency.tpot_p50 is not None
    assert 0 < latency.prefill < latency.ttft < latency.total
    assert latency.tpot_p99 is not None and latency.tpot_p50 <= latency.tpot_p99
    decode = report.throughput.decode
    assert decode is not None
    # Every token after the first is one step; the warm-up is left out.
    assert decode.samples == 20 - 1 - WARMUP_STEPS
    assert report.throughput.warmup_steps == WARMUP_STEPS
    assert decode.p10 <= decode.median <= decode.p90
    assert bandwidth.bytes_per_token == (
        bandwidth.weight_bytes_per_token + bandwidth.kv_bytes_per_token
    )
    assert bandwidth.achieved_bytes_per_second == pytest.approx(
        bandwidth.bytes_per_token * decode.median
    )
    assert bandwidth.device_bytes_per_second is not None
    assert bandwidth.roofline_tokens_per_second is not None
    assert bandwidth.share_of_device == pytest.approx(
        decode.median / bandwidth.roofline_tokens_per_second
    )
    assert bandwidth.device_source == "measured"


def test_kv_bytes_are_those_of_the_mean_position(report: RunReport, tiny_bundle: Path) -> None:
    from awq_edge.artifacts.directories import Bundle

    manifest = Bundle.open(tiny_bundle).manifest
    lengths = [report.request.prompt_tokens + 1 + step for step in range(WARMUP_STEPS, 19)]
    mean = sum(lengths) / len(lengths)
    per_position = kv_cache_bytes(manifest, 1)
    # To half a position: the figure is of a whole one.
    assert abs(report.bandwidth.kv_bytes_per_token - mean * per_position) <= per_position / 2


def test_memory_parts(report: RunReport, tiny_bundle: Path) -> None:
    predicted, measured = report.memory.predicted, report.memory.measured
    parts = (predicted.weights, predicted.kv_cache, predicted.activations, predicted.overhead)
    assert predicted.total == sum(parts)
    assert measured.peak is not None and measured.after_load is not None
    assert measured.peak >= measured.after_load
    assert report.memory.peak_over_predicted == pytest.approx(measured.peak / predicted.total)


def test_what_ran_is_named(report: RunReport) -> None:
    assert {"awq-edge", "python", "onnxruntime", "tokenizers", "numpy"} <= set(
        report.environment.versions
    )
    assert report.environment.backend == "onnxruntime"
    assert report.environment.threads == 1
    assert report.bundle.model_name == "tiny-llama"
    assert report.request.ignore_eos


def test_the_default_number_of_tokens_is_what_fits(tiny_bundle: Path) -> None:
    def finish(context: int) -> tuple[str, int]:
        made = run(tiny_bundle, "Once upon", ignore_eos=True, context=context, threads=1)
        return made.result.finish_reason, made.result.generated_tokens

    assert finish(256) == ("length", DEFAULT_NEW_TOKENS)
    reason, tokens = finish(64)
    assert reason == "context"
    assert tokens < 64


def table_of(report: RunReport) -> str:
    out = io.StringIO()
    print_report(report, Console(file=out, width=200, markup=False, highlight=False))
    return out.getvalue()


def test_table_shows_the_figures(report: RunReport) -> None:
    text = table_of(report)
    decode = report.throughput.decode
    assert decode is not None
    assert f"{decode.median:.2f} tokens/s" in text
    assert "TTFT" in text and "p50 / p95 / p99" in text and "GB/s" in text
    assert f"{report.memory.predicted.total / 1e6:,.1f} MB" in text
    assert "onnxruntime" in text and "commit" in text


def test_table_of_a_run_that_was_cancelled_at_once(tiny_bundle: Path) -> None:
    report = run(tiny_bundle, "Once", cancelled=lambda: True, threads=1)
    assert report.result.finish_reason == "cancelled"
    assert report.latency.ttft is None and report.throughput.decode is None
    assert RunReport.model_validate_json(report.model_dump_json()) == report
    text = table_of(report)
    assert "interrupted" in text
    assert "None" not in text


def test_names_with_brackets_are_printed_as_they_are(report: RunReport) -> None:
    named = report.model_copy(
        update={"bundle": report.bundle.model_copy(update={"model_name": "org/[bold]x"})}
    )
    assert "org/[bold]x: " in table_of(named)


def test_dataclasses_of_memory_and_report_have_the_same_parts() -> None:
    from awq_edge.run.report import PredictedMemoryReport
    from awq_edge.runtime.memory import PredictedMemory

    names = {field.name for field in dataclasses.fields(PredictedMemory)} | {"total"}
    assert set(PredictedMemoryReport.model_fields) == names
