"""`awq-edge eval perplexity` as a call: from a path and a text file to a report."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Literal

from awq_edge.artifacts.provenance import source_commit, versions
from awq_edge.artifacts.schema import Manifest
from awq_edge.evaluate.logits_models import EvaluatedModel, LogitsModel, open_logits_model
from awq_edge.evaluate.perplexity import (
    DEFAULT_WINDOW,
    Progress,
    Score,
    check_max_tokens,
    choose_window,
    score,
)
from awq_edge.evaluate.text import Text, TextInfo, read_text
from awq_edge.runtime.text_tokens import TokenizedText


class PerplexityReport(Manifest):
    """The report of `awq-edge eval perplexity`."""

    format: Literal["awq-edge-perplexity"] = "awq-edge-perplexity"
    format_version: Literal[2] = 2
    perplexity: float  # exp(nll / tokens)
    nll: float  # nats, the sum over `tokens` scored tokens
    tokens: int
    # nll / ln 2 over the UTF-8 bytes of those tokens; comparable between tokenizers
    bits_per_byte: float | None
    # window, stride: tokens
    window: int
    stride: int
    seconds: float  # scoring alone, without loading
    tokens_per_second: float
    model: EvaluatedModel
    text: TextInfo
    versions: dict[str, str]
    commit: str | None


def evaluate_perplexity(
    target: str | Path,
    text: str | Path | Text,
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
) -> PerplexityReport:
    """Perplexity of a text under a bundle, a checkpoint or a model.

    target: a directory of any of the three, a hub id, or "demo".
    text: a file (UTF-8, or JSON with one document a row), or the result of `read_text`.
    window: tokens, default 1024 or the context where that is shorter;
    stride: default half of it.
    max_tokens: score only the text's first tokens.
    device, dtype, threads, allow_unknown_keys, verify: see `open_logits_model`.
    Raises ConfigError for a text or a window that cannot be scored, and the errors of loading.
    """
    content = text if isinstance(text, Text) else read_text(Path(text))
    check_max_tokens(max_tokens)
    longest = DEFAULT_WINDOW if window is None else window
    source = open_logits_model(
        str(target),
        window=longest,
        device=device,
        dtype=dtype,
        threads=threads,
        allow_unknown_keys=allow_unknown_keys,
        verify=verify,
    )
    try:
        whole = content.tokenized(source.tokenizer)
        window, stride = choose_window(window, stride, source.context, whole.prefix)
        part = whole.first(max_tokens)
        start = time.perf_counter()
        result = score(source, part, window=window, stride=stride, progress=progress)
        seconds = time.perf_counter() - start
        return PerplexityReport(
            perplexity=result.perplexity,
            nll=result.nll,
            tokens=result.tokens,
            bits_per_byte=_bits_per_byte(source, part, result),
            window=window,
            stride=stride,
            seconds=seconds,
            tokens_per_second=result.tokens / seconds,
            model=source.info,
            text=content.info(whole),
            versions=versions(("numpy", "tokenizers", *source.packages)),
            commit=source_commit(),
        )
    finally:
        source.close()


def _bits_per_byte(source: LogitsModel, text: TokenizedText, score: Score) -> float | None:
    """Bits per byte of the scored text; None where the tokens stand for no text at all."""
    # Without a prefix the first token is not scored, and with stride = window neither is that of
    # each window: those count as average ones.
    ids = text.ids if text.prefix else text.ids[1:]
    words = source.tokenizer.decode(ids, skip_special_tokens=False)
    size = len(words.encode("utf-8")) * score.tokens / len(ids)
    return score.nll / math.log(2) / size if size else None
