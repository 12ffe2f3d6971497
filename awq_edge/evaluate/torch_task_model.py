"""Models and checkpoints for benchmark tasks, with torch. Needs the [host] extra."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch

from awq_edge.evaluate.arrays import Float32
from awq_edge.evaluate.task_model import Continuation, Likelihood, likelihood
from awq_edge.evaluate.torch_models import TransformersModel
from awq_edge.runtime.generation import Request, StopStrings
from awq_edge.runtime.sampling import Sampler
from awq_edge.runtime.tokenizer import Tokenizer, stop_token_ids

_Item = TypeVar("_Item")

_PADDING = 0  # any id: what stands there is masked, or comes after everything that counts


class TorchTaskModel:
    """A transformers model. Requests run in batches, the longest first, so that a lack of memory
    shows at once."""

    def __init__(self, source: TransformersModel, *, context: int, batch_size: int) -> None:
        """context: tokens of prompt and answer.
        batch_size: sequences of one execution.
        """
        self._source = source
        self._batch_size = batch_size
        self.info = source.info
        self.packages = source.packages
        self.tokenizer = source.tokenizer
        self.context = context
        self.stop_token_ids = stop_token_ids(source.tokenizer, _eos_token_ids(source.model.config))

    def likelihoods(self, asked: Sequence[Continuation]) -> Iterator[tuple[int, Likelihood]]:
        """See `TaskModel`. Continuations that read the same ids (the one-token choices of a
        question) are computed once."""
        same: dict[tuple[int, ...], list[int]] = {}
        for index, item in enumerate(asked):
            same.setdefault(item.inputs, []).append(index)
        for batch in _batches(sorted(same, key=len, reverse=True), self._batch_size):
            wanted = [max(len(asked[index].tokens) for index in same[inputs]) for inputs in batch]
            for inputs, rows in zip(batch, self._last_logits(batch, wanted), strict=True):
                for index in same[inputs]:
                    tokens = asked[index].tokens
                    yield index, likelihood(rows[len(rows) - len(tokens) :], tokens)

    def answers(self, asked: Sequence[Request]) -> Iterator[tuple[int, str]]:
        """See `TaskModel`."""
        order = sorted(range(len(asked)), key=lambda i: len(asked[i].prompt_ids), reverse=True)
        for batch in _batches(order, self._batch_size):
            answers = [_Answer(asked[index], self.tokenizer) for index in batch]
            self._generate(answers)
            for index, answer in zip(batch, answers, strict=True):
                yield index, answer.text

    def close(self) -> None:
        """Free the weights."""
        self._source.close()

    def _last_logits(
        self, batch: Sequence[Sequence[int]], wanted: Sequence[int]
    ) -> Iterator[Float32]:
        """Logits at the last wanted[i] positions of batch[i]: float32 [wanted[i], vocab] each.

        The padding is on the right, where no token before it sees it: no mask is needed. Logits are
        computed at the union of the positions that any sequence wants.
        """
        width = max(map(len, batch))
        ids = torch.full((len(batch), width), _PADDING, dtype=torch.long)
        spans = [range(len(row) - want, len(row)) for row, want in zip(batch, wanted, strict=True)]
        for row, sequence in enumerate(batch):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        positions = sorted(set().union(*spans))
        with torch.inference_mode():
            logits = self._source.model(
                input_ids=ids.to(self._device),
                use_cache=False,
                logits_to_keep=torch.tensor(positions, device=self._device),
            ).logits  # [B, len(positions), vocab]
        for row, span in enumerate(spans):
            first = positions.index(span.start)  # a span's positions lie side by side in the union
            rows: Float32 = logits[row, first : first + len(span)].float().cpu().numpy()
            yield rows

    def _generate(self, answers: Sequence[_Answer]) -> None:
        """Run the answers to their ends, one token of each at a time."""
        prompts = [answer.request.prompt_ids for answer in answers]
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), _PADDING, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):  # on the left: the next token comes last in each
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache: Any = None
        while not all(answer.done for answer in answers):
            with torch.inference_mode():
                output = self._source.model(
                    input_ids=ids.to(self._device),
                    attention_mask=mask.to(self._device),
                    position_ids=positions.to(self._device),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            cache = output.past_key_values
            logits: Float32 = output.logits[:, -1].float().cpu().numpy()  # [B, vocab]
            chosen = [answer.take(row) for answer, row in zip(answers, logits, strict=True)]
            ids = torch.tensor(chosen)[:, None]
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            positions = positions[:, -1:] + 1

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._source.model.device
        return device


class _Answer:
    """One sequence of a batch: `runtime.generation.TextStream`, fed from outside."""

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self.request = request
        self.done = False
        self.text = ""
        self._sampler = Sampler(request.sampling)
        self._sampler.observe(list(request.prompt_ids))
        self._decoder = tokenizer.stream(request.prompt_ids)
        self._stops = StopStrings(request.stop)
        self._tokens = 0

    def take(self, logits: Float32) -> int:
        """Choose the next token from its logits, float32 [vocab]; padding after the end."""
        if self.done:
            return _PADDING
        token = self._sampler.choose(logits)
        if token in self.request.stop_token_ids:
            self._end()
            return _PADDING
        self._tokens += 1
        self.text += self._stops.push(self._decoder.push(token))
        if self._stops.matched is not None:
            self.done = True
        elif self._tokens == self.request.max_new_tokens:
            self._end()
        return token

    def _end(self) -> None:
        """End the answer without a stop string: the text held back for one is part of it."""
        self.done = True
        self.text += self._stops.push(self._decoder.flush())
        self.text += self._stops.flush()


def _batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _eos_token_ids(config: Any) -> tuple[int, ...]:
    """Ids that end a text by config.json."""
    token_ids = getattr(config.get_text_config(), "eos_token_id", None)
    if token_ids is None:
        return ()
    return (token_ids,) if isinstance(token_ids, int) else tuple(token_ids)
