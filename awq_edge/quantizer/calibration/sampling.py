"""Token sequences drawn from a whole model, all at once, a token of each a step.

    the script's opening ─► drawn tokens ─► end token ─► its next break ─► drawn tokens ...

A script's tokens are fed like drawn ones, so that no row waits for another and none is padded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import Cache, DynamicLayer

from awq_edge.errors import ModelError
from awq_edge.quantizer.calibration.scripts import Script

# A cumulative sum over a whole vocabulary costs as much as a block: sums of so many, then in one.
_BIN = 256


class NotFiniteError(ModelError):
    """The model's logits have NaN or inf."""


def draw(
    model: Any,
    scripts: Sequence[Script],
    ends: Collection[int],
    *,
    device: torch.device,
    length: int,
    seed: int,
    batch: int,
    vocab_size: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> npt.NDArray[np.int64]:
    """Draw one sequence a script at temperature 1: int64 [scripts, length].

    model: transformers' class. device: of its language model. ends: ids that end a document or a
    turn. seed: with the number of a sequence it decides all its random numbers. batch: sequences at
    a time. vocab_size: ids that may be drawn lie below. progress: called with the tokens that are
    done, over all sequences.
    Raises NotFiniteError.
    """
    forbidden = torch.tensor(sorted(e for e in ends if e < vocab_size), device=device)
    drawn = []
    for start in range(0, len(scripts), batch):
        rows = [
            _Row(script, ends, np.random.default_rng((seed, start + number)).random(length))
            for number, script in enumerate(scripts[start : start + batch])
        ]
        cache = Cache(layers=[_Layer(length) for _ in range(_layers(model))])
        for position in range(length):
            tokens = torch.tensor([row.ids[-1:] for row in rows], device=device)
            if position == 0:
                for row in rows:
                    row.take(None)
                continue
            with torch.inference_mode():
                logits = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
                logits = logits[:, -1, :vocab_size].float()
                closed = torch.tensor([row.is_short for row in rows], device=device)
                logits[:, forbidden] = logits[:, forbidden].masked_fill(closed[:, None], -torch.inf)
                uniform = torch.tensor([row.uniform[position] for row in rows], device=device)
                chosen = _choose(logits, uniform).tolist()
            for row, token in zip(rows, chosen, strict=True):
                row.take(token)
            progress(start * length + (position + 1) * len(rows))
        drawn += [row.ids for row in rows]
    return np.array(drawn, dtype=np.int64)


class _Row:
    """One sequence that is being drawn. uniform: float64 [length], a number in [0, 1) a token."""

    def __init__(
        self, script: Script, ends: Collection[int], uniform: npt.NDArray[np.float64]
    ) -> None:
        self.ids: list[int] = []
        self.uniform = uniform
        self._script = script
        self._ends = ends
        self._forced = deque(script.opening)
        self._breaks = 0
        self._drawn = 0  # since the last forced token

    @property
    def is_short(self) -> bool:
        """True while an end token may not be drawn."""
        return self._drawn < self._script.shortest

    def take(self, drawn: int | None) -> None:
        """Append the next token: a forced one, or the drawn one, in whose place a break begins
        where it is an end token."""
        if not self._forced and drawn in self._ends:
            breaks = self._script.breaks
            self._forced.extend(breaks[self._breaks % len(breaks)])
            self._breaks += 1
        if self._forced:
            self.ids.append(self._forced.popleft())
            self._drawn = 0
        else:
            assert drawn is not None, "a script opens with a token"
            self.ids.append(drawn)
            self._drawn += 1


class _Layer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one block, in memory that is taken once. A window is the mask's affair."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.is_initialized = False
        self._length, self._filled = length, 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            rows, heads = key_states.shape[:2]
            self.keys = key_states.new_empty(rows, heads, self._length, key_states.shape[-1])
            self.values = value_states.new_empty(rows, heads, self._length, value_states.shape[-1])
            self.is_initialized = True
        begin, self._filled = self._filled, self._filled + key_states.shape[2]
        self.keys[:, :, begin : self._filled] = key_states
        self.values[:, :, begin : self._filled] = value_states
        return self.keys[:, :, : self._filled], self.values[:, :, : self._filled]

    def get_seq_length(self) -> int:
        return self._filled


def _layers(model: Any) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


def _choose(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The token of each row whose share of the cumulated probabilities a number falls into.

    logits: float32 [rows, vocab]. uniform: float64 [rows], in [0, 1). Returns int64 [rows].
    Raises NotFiniteError.
    """
    rows, vocab = logits.shape
    weights = (logits - logits.amax(dim=1, keepdim=True)).exp()
    weights = torch.nn.functional.pad(weights, (0, -vocab % _BIN)).view(rows, -1, _BIN)
    upto = weights.sum(dim=2).double().cumsum(dim=1)
    if not bool(torch.isfinite(upto[:, -1]).all()):
        raise NotFiniteError("the model's logits are not finite")
    target = uniform * upto[:, -1]
    place = torch.searchsorted(upto, target[:, None], right=True).clamp(max=upto.shape[1] - 1)
    inside = weights[torch.arange(rows, device=logits.device), place[:, 0]].double()
    before = (upto.gather(1, place) - inside.sum(dim=1, keepdim=True)).clamp(min=0)
    token = torch.searchsorted(before + inside.cumsum(dim=1), target[:, None], right=True)
    return (place * _BIN + token.clamp(max=_BIN - 1))[:, 0].clamp(max=vocab - 1)
