"""`awq-edge eval divergence` as a call: from two paths and a text file to a report."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Literal

import numpy as np

from awq_edge.artifacts.provenance import source_commit, versions
from awq_edge.artifacts.schema import Manifest, Record
from awq_edge.errors import ConfigError
from awq_edge.evaluate.divergence import Divergence, Float64, check_same_vocabulary, divergence
from awq_edge.evaluate.logits_models import (
    EvaluatedModel,
    LogitsModel,
    is_bundle,
    open_logits_model,
)
from awq_edge.evaluate.perplexity import (
    DEFAULT_WINDOW,
    Progress,
    check_max_tokens,
    choose_window,
)
from awq_edge.evaluate.text import Text, TextInfo, read_text


class KlReport(Record):
    """KL(reference || target) of the scored tokens, in nats.

    standard_error: of the mean, the tokens taken as independent; None where there is only one.
    """

    mean: float
    standard_error: float | None
    p50: float
    p95: float
    p99: float
    max: float


class DivergenceReport(Manifest):
    """The report of `awq-edge eval divergence`.

    top1_agreement: share of tokens before which the same token is likeliest for both models.
    top5_overlap: share of the reference's five likeliest that are among the target's five.
    perplexity: the target's.
    perplexity_ratio: target / reference; its standard error is that of the paired tokens, None
        where there is only one.
    window, stride: tokens.
    seconds: scoring alone, without loading.
    """

    format: Literal["awq-edge-divergence"] = "awq-edge-divergence"
    format_version: Literal[2] = 2
    kl: KlReport
    top1_agreement: float
    top5_overlap: float
    perplexity: float
    reference_perplexity: float
    perplexity_ratio: float
    perplexity_ratio_standard_error: float | None
    tokens: int
    window: int
    stride: int
    seconds: float
    tokens_per_second: float
    model: EvaluatedModel
    reference: EvaluatedModel
    text: TextInfo
    versions: dict[str, str]
    commit: str | None


def evaluate_divergence(
    target: str | Path,
    reference: str | Path,
    text: str | Path,
    *,
    window: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    allow_unknown_keys: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
) -> DivergenceReport:
    """The divergence of a model from a reference on a text.

    target, reference: directories of bundles, checkpoints or models, hub ids, or "demo"; both are
        in memory at once.
    window: tokens, default 1024 or the shorter context;
    stride: default half of it.
    max_tokens: score only the text's first tokens.
    device, dtype: for models and checkpoints.
    threads, allow_unknown_keys, verify: for both; see `open_logits_model`.
    Raises ConfigError for a text or a window that cannot be scored and for two models of different
    vocabularies, and the errors of loading.
    """
    content = read_text(Path(text))
    check_max_tokens(max_tokens)
    longest = DEFAULT_WINDOW if window is None else window
    names = (str(target), str(reference))
    flexible = not all(map(is_bundle, names))
    opened: list[LogitsModel] = []
    try:
        for name in names:
            # Where one of the two is a bundle, the flags are the other's.
            takes = not (flexible and is_bundle(name))
            opened.append(
                open_logits_model(
                    name,
                    window=longest,
                    device=device if takes else None,
                    dtype=dtype if takes else None,
                    threads=threads,
                    allow_unknown_keys=allow_unknown_keys,
                    verify=verify,
                )
            )
        return _measure(opened[0], opened[1], content, window, stride, max_tokens, progress)
    finally:
        for source in opened:
            source.close()


def _measure(
    target: LogitsModel,
    reference: LogitsModel,
    text: Text,
    window: int | None,
    stride: int | None,
    max_tokens: int | None,
    progress: Progress | None,
) -> DivergenceReport:
    check_same_vocabulary(target, reference)
    whole = text.tokenized(reference.tokenizer)
    context = min(target.context, reference.context)
    window, stride = choose_window(window, stride, context, whole.prefix)
    if text.tokenized(target.tokenizer) != whole:
        raise ConfigError(
            f"{target.info.path} and the reference {reference.info.path} have the same vocabulary "
            "but cut the text into different tokens (special tokens, merges or chat templates "
            "differ); compare models of one tokenizer"
        )
    start = time.perf_counter()
    result = divergence(
        target, reference, whole.first(max_tokens), window=window, stride=stride, progress=progress
    )
    seconds = time.perf_counter() - start
    ratio = result.perplexity / result.reference_perplexity
    ratio_error = standard_error(result.nll - result.reference_nll)
    return DivergenceReport(
        kl=_kl_report(result),
        top1_agreement=float(result.same_top1.mean()),
        top5_overlap=float(result.shared_top5.mean()),
        perplexity=result.perplexity,
        reference_perplexity=result.reference_perplexity,
        perplexity_ratio=ratio,
        # d exp(x) = exp(x) dx, with x the mean difference of the log-likelihoods
        perplexity_ratio_standard_error=None if ratio_error is None else ratio * ratio_error,
        tokens=len(result.kl),
        window=window,
        stride=stride,
        seconds=seconds,
        tokens_per_second=len(result.kl) / seconds,
        model=target.info,
        reference=reference.info,
        text=text.info(whole),
        versions=versions(("numpy", "tokenizers", *target.packages, *reference.packages)),
        commit=source_commit(),
    )


def _kl_report(result: Divergence) -> KlReport:
    p50, p95, p99 = (float(value) for value in np.percentile(result.kl, (50, 95, 99)))
    return KlReport(
        mean=float(result.kl.mean()),
        standard_error=standard_error(result.kl),
        p50=p50,
        p95=p95,
        p99=p99,
        max=float(result.kl.max()),
    )


def standard_error(values: Float64) -> float | None:
    """Standard error of the mean of independent values; None where there is only one."""
    if len(values) < 2:
        return None
    return float(values.std(ddof=1)) / math.sqrt(len(values))
