"""Models that are functions: of all ids before a token, or of a prompt's text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from awq_edge.evaluate.arrays import Float32
from awq_edge.evaluate.logits_models import EvaluatedModel
from awq_edge.evaluate.task_model import Continuation, Likelihood
from awq_edge.runtime.generation import Request, StopStrings
from awq_edge.runtime.tokenizer import Tokenizer
from tests.tiny_models import EOS

VOCAB = 11


class PrefixSource:
    """Logits that depend on every id of the input: a score with another context differs.

    blocks: rows of one block. seed: another one is another model.
    """

    context = 100
    packages = ()

    def __init__(self, blocks: int = 1000, *, seed: int = 0, vocab_size: int = VOCAB) -> None:
        self.blocks = blocks
        self.seed = seed
        self.vocab_size = vocab_size
        self.tokens = {str(i): i for i in range(vocab_size)}
        self.info: Any = SimpleNamespace(path=f"model-{seed}")
        self.tokenizer: Any = SimpleNamespace(vocabulary=lambda: self.tokens)
        self.inputs: list[tuple[int, ...]] = []
        self.row: Callable[[Sequence[int]], Float32] = self._row

    def logits(self, ids: Sequence[int], first: int) -> Iterator[Float32]:
        self.inputs.append(tuple(ids))
        for begin in range(first, len(ids), self.blocks):
            ends = range(begin, min(begin + self.blocks, len(ids)))
            yield np.stack([self.row(ids[: end + 1]) for end in ends])

    def _row(self, prefix: Sequence[int]) -> Float32:
        seed = hash((self.seed, *prefix)) % 2**32
        return np.random.default_rng(seed).normal(size=self.vocab_size).astype(np.float32)

    def close(self) -> None:
        pass

    def negative_log_likelihood(self, prefix: Sequence[int], target: int) -> float:
        logits = self.row(prefix).astype(np.float64)
        return float(np.log(np.exp(logits).sum()) - logits[target])


class ScriptedTaskModel:
    """A `TaskModel` over a real tokenizer whose answers and likelihoods are functions.

    answer: from a prompt's text to what is written, which ends at a stop string as everywhere.
    log_likelihood: of tokens behind a context. continuations, requests: what was asked.
    """

    packages = ()

    def __init__(
        self,
        directory: Path,
        *,
        answer: Callable[[str], str] = lambda prompt: "",
        log_likelihood: Callable[[Continuation], float] = lambda asked: -1.0,
        context: int = 1000,
    ) -> None:
        self.tokenizer = Tokenizer(directory)
        self.info = EvaluatedModel(
            kind="model", path="scripted", runtime="none", device="none", dtype="none"
        )
        self.context = context
        self.stop_token_ids = frozenset({EOS})
        self.continuations: list[Continuation] = []
        self.requests: list[Request] = []
        self._answer = answer
        self._log_likelihood = log_likelihood

    def likelihoods(self, asked: Sequence[Continuation]) -> Iterator[tuple[int, Likelihood]]:
        self.continuations += asked
        for index in reversed(range(len(asked))):  # any order is allowed
            yield index, Likelihood(self._log_likelihood(asked[index]), False)

    def answers(self, asked: Sequence[Request]) -> Iterator[tuple[int, str]]:
        self.requests += asked
        for index in reversed(range(len(asked))):
            text = self._answer(self.tokenizer.decode(asked[index].prompt_ids))
            stops = StopStrings(asked[index].stop)
            yield index, stops.push(text) + stops.flush()

    def close(self) -> None:
        pass
