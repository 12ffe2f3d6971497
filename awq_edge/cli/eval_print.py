"""The reports of `awq-edge eval` for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from awq_edge.evaluate.divergence_report import DivergenceReport
from awq_edge.evaluate.logits_models import EvaluatedModel
from awq_edge.evaluate.report import PerplexityReport
from awq_edge.evaluate.tasks import MetricResult, TasksReport

_TABLE_WIDTH = 200  # characters; names of tasks are long


def print_perplexity(report: PerplexityReport, console: Console) -> None:
    console.print(f"perplexity {report.perplexity:.4f}", style="bold")
    bits = "" if report.bits_per_byte is None else f"{report.bits_per_byte:.4f} bits per byte; "
    console.print(bits + _scored(report), soft_wrap=True)
    console.print(_describe(report.model), soft_wrap=True)


def print_divergence(report: DivergenceReport, console: Console) -> None:
    kl = report.kl
    console.print(
        f"KL divergence {kl.mean:.4g}{_plus_minus(kl.standard_error)} nats per token",
        style="bold",
    )
    console.print(
        f"p50 {kl.p50:.4g}, p95 {kl.p95:.4g}, p99 {kl.p99:.4g}, max {kl.max:.4g}", soft_wrap=True
    )
    console.print(
        f"top-1 agreement {report.top1_agreement:.2%}, top-5 overlap {report.top5_overlap:.2%}"
    )
    console.print(
        f"perplexity {report.perplexity:.4f}, reference {report.reference_perplexity:.4f}, ratio "
        f"{report.perplexity_ratio:.5f}{_plus_minus(report.perplexity_ratio_standard_error)}",
        soft_wrap=True,
    )
    console.print(_scored(report), soft_wrap=True)
    console.print(_describe(report.model), soft_wrap=True)
    console.print(f"reference: {_describe(report.reference)}", soft_wrap=True)


def print_tasks(report: TasksReport, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("task", "version", "n-shot", "samples", "filter", "metric", "value", "± error"):
        numeric = name in ("n-shot", "samples", "value", "± error")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for result in report.results:
        for metric in result.metrics:
            table.add_row(
                result.name,
                result.version or "",
                "" if result.n_shot is None else str(result.n_shot),
                str(result.samples),
                metric.filter,
                metric.metric + _better(metric),
                "none" if metric.value is None else f"{metric.value:.4f}",
                "" if metric.standard_error is None else f"{metric.standard_error:.4f}",
            )
    # As wide as it is: nothing is cut, not even in a pipe, for which rich assumes 80 characters.
    console.width = max(console.width, _TABLE_WIDTH)
    console.print(table)
    examples = "the tasks' own" if report.num_fewshot is None else str(report.num_fewshot)
    console.print(
        f"limit {report.limit or 'none'}, examples {examples}, chat template "
        f"{'applied' if report.chat_template else 'not applied'}, context {report.context}, "
        f"{report.truncated_requests} prompts cut to fit it; {report.seconds:.1f} s; lm-eval "
        f"{report.versions.get('lm-eval', 'unknown')}",
        soft_wrap=True,
    )
    console.print(_describe(report.model), soft_wrap=True)


def _better(metric: MetricResult) -> str:
    """An arrow towards better values."""
    return {True: " ↑", False: " ↓", None: ""}[metric.higher_is_better]


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" ± {error:.2g}"


def _scored(report: PerplexityReport | DivergenceReport) -> str:
    begins = ", each window behind BOS" if report.text.prefix else ""
    return (
        f"{report.tokens:,} tokens, window {report.window}, stride {report.stride}{begins}; "
        f"{report.seconds:.1f} s ({report.tokens_per_second:,.0f} tokens/s)"
    )


def _describe(model: EvaluatedModel) -> str:
    weights = "unquantized"
    if model.method is not None:
        weights = f"{model.bits}-bit {model.method}, group {model.group_size}"
    level = "" if model.accuracy_level is None else f", accuracy level {model.accuracy_level}"
    return (
        f"{model.kind} {model.path}: {weights}, {model.dtype}{level}, {model.runtime} on "
        f"{model.device}"
    )
