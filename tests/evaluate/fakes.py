"""A source whose logits are a function of all ids before them: no model is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from awq_edge.evaluate.sources import Float32

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
