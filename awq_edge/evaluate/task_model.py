"""The model that benchmark tasks ask for likelihoods of continuations, and for answers.

bundle              through the session of its runtime    SessionTaskModel (here)
checkpoint, model   with torch, several at a time         torch_task_model.TorchTaskModel
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from awq_edge.errors import ConfigError, ModelError
from awq_edge.evaluate.arrays import Float32
from awq_edge.evaluate.logits_models import (
    EvaluatedModel,
    SessionLogitsModel,
    is_bundle,
    open_logits_model,
)
from awq_edge.evaluate.perplexity import negative_log_likelihoods
from awq_edge.runtime.generation import Request, common_prefix
from awq_edge.runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Continuation:
    """Token ids `tokens` after the token ids `context`; neither is empty."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """The ids that the model reads: all but the last token, which is only predicted."""
        return self.context + self.tokens[:-1]


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of a continuation."""

    log_likelihood: float  # log p(tokens | context), nats
    # each of the tokens is the likeliest one at its place, so that greedy decoding would write them
    is_greedy: bool


class TaskModel(Protocol):
    """A loaded model. Both calls give (index of the request, result), in the order that costs
    least."""

    @property
    def info(self) -> EvaluatedModel: ...

    @property
    def packages(self) -> Sequence[str]:
        """The packages that compute, for the versions in a report."""
        ...

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        ...

    def likelihoods(self, asked: Sequence[Continuation]) -> Iterator[tuple[int, Likelihood]]:
        """Likelihoods of continuations. Raises ModelError when an output is not finite."""
        ...

    def answers(self, asked: Sequence[Request]) -> Iterator[tuple[int, str]]:
        """The texts that the model generates."""
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


class SessionTaskModel:
    """A bundle. Requests run one after the other, sorted, so that the common beginning of
    neighbours (the examples of a few-shot task, the question of a multiple choice) stays in the KV
    cache."""

    def __init__(self, source: SessionLogitsModel) -> None:
        self._model = source.model
        self.info = source.info
        self.packages = source.packages
        self.tokenizer = source.tokenizer
        self.context = source.model.session.context
        self.stop_token_ids = source.model.stop_token_ids

    def likelihoods(self, asked: Sequence[Continuation]) -> Iterator[tuple[int, Likelihood]]:
        """See `TaskModel`."""
        for index in sorted(range(len(asked)), key=lambda i: asked[i].inputs):
            yield index, self._likelihood(asked[index])

    def answers(self, asked: Sequence[Request]) -> Iterator[tuple[int, str]]:
        """See `TaskModel`."""
        for index in sorted(range(len(asked)), key=lambda i: tuple(asked[i].prompt_ids)):
            stream = self._model.stream_request(asked[index], reuse_cache=True)
            yield index, stream.finish().text

    def close(self) -> None:
        """Free weights and KV cache."""
        self._model.close()

    def _likelihood(self, asked: Continuation) -> Likelihood:
        session, inputs = self._model.session, asked.inputs
        first = len(asked.context) - 1  # its logits predict the first of the tokens
        kept = min(common_prefix(session.cached_ids, inputs), first)
        session.truncate(kept)
        parts: list[Likelihood] = []
        done = 0
        for start in range(kept, len(inputs), session.prefill_chunk):
            piece = inputs[start : start + session.prefill_chunk]
            positions = range(max(first - start, 0), len(piece))
            logits = session.logits(piece, positions)
            if len(positions):
                parts.append(likelihood(logits, asked.tokens[done : done + len(positions)]))
                done += len(positions)
        return Likelihood(
            sum(part.log_likelihood for part in parts), all(part.is_greedy for part in parts)
        )


def likelihood(logits: Float32, tokens: Sequence[int]) -> Likelihood:
    """Likelihood of `tokens` under the logits before each: float32 [len(tokens), vocab].

    Raises ModelError when a logit is not finite.
    """
    targets = np.asarray(tokens, dtype=np.int64)
    log_likelihood = -float(negative_log_likelihoods(logits, targets).sum())
    if not np.isfinite(log_likelihood):
        raise ModelError(
            "the model's output is not finite: its weights are damaged, or its activations "
            "overflow float16 (use float32)"
        )
    return Likelihood(log_likelihood, bool((logits.argmax(axis=1) == targets).all()))


def open_task_model(
    target: str,
    *,
    context: int | None,
    batch_size: int,
    device: str | None,
    dtype: str | None,
    threads: int | None,
    allow_unknown_keys: bool = False,
    verify: bool = True,
) -> TaskModel:
    """Load a bundle, a checkpoint, or a model; see `open_logits_model`.

    context: tokens of prompt and answer, None for the model's whole.
    batch_size: sequences that torch computes at a time.
    Raises ConfigError for a choice that the target does not have.
    """
    if context is not None and context < 2:
        raise ConfigError(f"--context {context}: must be 2 or more")
    if batch_size < 1:
        raise ConfigError(f"--batch-size {batch_size}: must be 1 or more")
    if is_bundle(target) and batch_size > 1:
        raise ConfigError(
            f"--batch-size {batch_size}: a bundle runs one sequence at a time; leave --batch-size "
            "out, or evaluate the checkpoint"
        )
    window = sys.maxsize if context is None else context
    source = open_logits_model(
        target,
        window=window,
        device=device,
        dtype=dtype,
        threads=threads,
        allow_unknown_keys=allow_unknown_keys,
        verify=verify,
    )
    try:
        if context is not None and context > source.context:
            raise ConfigError(
                f"--context {context} is beyond the {source.context} tokens of {target}; choose "
                f"--context {source.context} or less"
            )
        if isinstance(source, SessionLogitsModel):
            return SessionTaskModel(source)
        from awq_edge.evaluate.torch_models import TransformersModel
        from awq_edge.evaluate.torch_task_model import TorchTaskModel

        assert isinstance(source, TransformersModel)
        return TorchTaskModel(source, context=context or source.context, batch_size=batch_size)
    except BaseException:
        source.close()
        raise
