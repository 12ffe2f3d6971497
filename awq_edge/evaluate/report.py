"""`awq-edge eval perplexity` as a call: from a path and a text file to a report."""

from __future__ import annotations

import math
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from awq_edge.evaluate.perplexity import (
    DEFAULT_WINDOW,
    Progress,
    Score,
    check_max_tokens,
    choose_window,
    score,
)
from awq_edge.evaluate.sources import LogitsSource, SourceInfo, open_source
from awq_edge.evaluate.text import TextInfo, read_text
from awq_edge.provenance import source_commit, versions


class PerplexityReport(BaseModel):
    """What `--json` writes.

    perplexity: exp(nll / tokens). nll: nats, the sum over `tokens` scored tokens. bits_per_byte:
    nll / ln 2 over the UTF-8 bytes that those tokens stand for; comparable between tokenizers.
    window, stride: tokens. seconds: scoring alone, without loading.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = "awq-edge-perplexity"
    format_version: int = 1
    perplexity: float
    nll: float
    tokens: int
    bits_per_byte: float | None
    window: int
    stride: int
    seconds: float
    tokens_per_second: float
    model: SourceInfo
    text: TextInfo
    versions: dict[str, str]
    commit: str | None


def evaluate_perplexity(
    target: str | Path,
    text: str | Path,
    *,
    window: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> PerplexityReport:
    """Perplexity of a UTF-8 text file under a bundle, a checkpoint or a model.

    target: a directory of any of the three, a hub id, or "demo". window: tokens, default 1024 or
    the context where that is shorter; stride: default half of it. max_tokens: score only the
    text's first tokens. device, dtype, threads: see `open_source`.
    Raises ConfigError for a text or a window that cannot be scored, and what loading raises.
    """
    content = read_text(Path(text))
    check_max_tokens(max_tokens)
    longest = DEFAULT_WINDOW if window is None else window
    source = open_source(str(target), window=longest, device=device, dtype=dtype, threads=threads)
    try:
        window, stride = choose_window(window, stride, source.context)
        all_ids = source.tokenizer.encode(content.words)
        ids = all_ids[:max_tokens]
        start = time.perf_counter()
        result = score(source, ids, window=window, stride=stride, progress=progress)
        seconds = time.perf_counter() - start
        return PerplexityReport(
            perplexity=result.perplexity,
            nll=result.nll,
            tokens=result.tokens,
            bits_per_byte=_bits_per_byte(source, ids, result),
            window=window,
            stride=stride,
            seconds=seconds,
            tokens_per_second=result.tokens / seconds,
            model=source.info,
            text=content.info(len(all_ids)),
            versions=versions(("numpy", "tokenizers", *source.packages)),
            commit=source_commit(),
        )
    finally:
        source.close()


def _bits_per_byte(source: LogitsSource, ids: list[int], score: Score) -> float | None:
    """Bits per byte of the scored text; None where the tokens stand for no text at all."""
    words = source.tokenizer.decode(ids[1:], skip_special_tokens=False)
    # With stride = window the first token of each window is not scored: it counts as an average
    # one.
    size = len(words.encode("utf-8")) * score.tokens / (len(ids) - 1)
    return score.nll / math.log(2) / size if size else None
