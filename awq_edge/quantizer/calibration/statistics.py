"""Statistics of the calibration inputs of a linear: mean|x| and G = sum x x^T.

With D the error of a weight [out, in], the squared error of the linear's output over all tokens is

    sum over tokens ||D x||^2  =  trace(D G D^T)

so G serves every search, whatever the number of tokens. It is summed over a part of the tokens, at
least four to a channel: more cost time and change nothing. Where in_features^2 is too large for
the memory budget, a seeded sample X of tokens stands for it: G ~ X^T X * tokens / samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from awq_edge.device.torch_device import float32_products
from awq_edge.quantizer.host_memory import column_pieces, row_pieces
from awq_edge.quantizer.search.gptq import inverse_factor

_FLOAT_BYTES = 4
_SAMPLE_TOKENS = 8192  # of a token sample, at most
# Tokens that G is summed over: docs/results.md has what fewer and more give.
_GRAM_TOKENS, _GRAM_TOKENS_PER_CHANNEL = 16384, 4
_GOLDEN_RATIO = 0.6180339887498949
_PANEL = 512  # columns of G that are computed at a time


class InputStatistics:
    """Statistics of one input of `in_features` channels. All float32, on the input's device."""

    def __init__(
        self,
        in_features: int,
        device: torch.device,
        *,
        sample_tokens: int | None,
        seed: int,
        expected_tokens: int = 0,
        correction: float | None = None,
    ) -> None:
        """sample_tokens: None keeps G; a number keeps that many tokens instead. expected_tokens:
        about how many will be added; G takes every one of them where they are few. correction: a of
        `target`, where pairs are added; G takes every one then, and what is limited on a CPU is the
        sum over both streams."""
        self.tokens = 0
        self.in_features = in_features
        self.device = device
        enough = max(_GRAM_TOKENS, _GRAM_TOKENS_PER_CHANNEL * in_features)
        share = min(1.0, enough / max(expected_tokens, 1))
        self._gram_share = share if correction is None else 1.0
        self._cross_share = share if device.type == "cpu" else 1.0
        self._correction = 0.0 if correction is None else correction
        self._gram_tokens = 0
        self._sum_abs = torch.zeros(in_features, device=device)
        self._gram: torch.Tensor | None = None
        self._is_mirrored = True
        self._factor: torch.Tensor | None = None
        self._cross: torch.Tensor | None = None
        self._cross_tokens = 0
        self._has_same_tokens = True
        self._drift: torch.Tensor | None = None
        self._sample: torch.Tensor | None = None
        if sample_tokens is None:
            self._gram = torch.zeros(in_features, in_features, device=device)
        else:
            self._sample = torch.zeros(sample_tokens, in_features, device=device)
            self._keys = torch.full((sample_tokens,), -1.0)
            self._random = torch.Generator().manual_seed(seed)

    @property
    def mean_abs(self) -> torch.Tensor:
        """Mean of |x| per channel: float32 [in]."""
        return self._sum_abs / max(self.tokens, 1)

    @property
    def is_paired(self) -> bool:
        """True where the tokens of both streams were added, see `add_pair`."""
        return self._cross is not None or self._drift is not None

    @property
    def is_sampled(self) -> bool:
        return self._sample is not None

    def add(self, inputs: torch.Tensor) -> None:
        """Add tokens. inputs: [..., in], any float dtype."""
        rows = inputs.reshape(-1, self.in_features).float()
        for columns in column_pieces(rows, 1):
            self._sum_abs[columns] += rows[:, columns].abs().sum(dim=0)
        if self._sample is not None:
            self._add_to_sample(rows)
        else:
            self._add_to_gram(rows[self._chosen(len(rows), self._gram_share)])
        self.tokens += len(rows)

    def add_pair(self, original: torch.Tensor, inputs: torch.Tensor) -> None:
        """Add tokens of both streams: what the linear reads in the original model, and what it
        reads behind quantized blocks. [..., in], any float dtype.

        Where they are not the same tokens (a router sends some elsewhere), the second alone counts.
        """
        taken = self._chosen(inputs.numel() // self.in_features, self._cross_share)
        self.add(inputs)
        if self._gram is None or original.numel() != inputs.numel() or not self._has_same_tokens:
            self._cross, self._has_same_tokens = None, False
            return
        if self._cross is None:
            self._cross = torch.zeros_like(self._gram)
        rows = [each.reshape(-1, self.in_features)[taken].float() for each in (original, inputs)]
        self._cross_tokens += len(rows[0])
        with float32_products(self.device, reduced=False):
            self._cross.addmm_((rows[0] - rows[1]).T, rows[1])

    def target(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight whose output on this stream's inputs stands for the original's on its own.

        W (I + a C G^-1) with C = sum of (x - y) y^T and G of y: a = 1 is least squares, which
        follows the calibration tokens too closely; see docs/quantize.md. weight: float32 [out, in].
        """
        if self._cross is not None:
            factor = self.inverse_factor()
            if factor is not None:  # None without a token: an expert that was never chosen
                share = self._correction * self.tokens / max(self._cross_tokens, 1)
                self._drift = (self._cross.mul_(share) @ factor.T) @ factor
            self._cross = None
        return weight if self._drift is None else torch.addmm(weight, weight, self._drift)

    def inverse_factor(self, scale: torch.Tensor | None = None) -> torch.Tensor | None:
        """`awq_edge.quantizer.search.gptq.inverse_factor` of G, float32 [in, in]; None without
        tokens or where a sample stands for G.

        scale: s of inputs that are divided by it, float32 [in]: with H^-1 = U^T U of the inputs as
        they are, that of the divided ones is U times s, column by column.
        """
        if self.gram is None or self.tokens == 0:
            return None
        if self._factor is None:
            self._factor = inverse_factor(self.gram)
        return self._factor if scale is None else self._factor * scale

    def _chosen(self, count: int, share: float) -> torch.Tensor | slice:
        """Which of the next tokens are in a sum over a share of all: int64 indices.

        Multiples of the golden ratio, modulo 1, are even over any stretch of tokens and favour no
        position of a sequence (the first token of each is unlike all others).
        """
        if share >= 1:
            return slice(None)
        numbers = torch.arange(self.tokens, self.tokens + count, dtype=torch.float64)
        return ((numbers * _GOLDEN_RATIO) % 1 < share).nonzero()[:, 0].to(self.device)

    def _add_to_gram(self, rows: torch.Tensor) -> None:
        """Add to the lower triangle, panel by panel:

        ┌──┐
        │##├──┐        # computed        the rest is mirrored when G is read
        │##│##├──┐
        │##│##│##│
        └──┴──┴──┘
        """
        assert self._gram is not None
        self._gram_tokens += len(rows)
        self._is_mirrored = False
        transposed = rows.T
        with float32_products(self.device, reduced=False):
            for begin in range(0, len(self._gram), _PANEL):
                panel = slice(begin, begin + _PANEL)
                self._gram[begin:, panel].addmm_(transposed[begin:], rows[:, panel])

    def _whole_gram(self) -> torch.Tensor:
        """G, both triangles, of all tokens; of those that it was summed over until it is read."""
        assert self._gram is not None
        if not self._is_mirrored:
            for begin in range(0, len(self._gram), _PANEL):
                end = begin + _PANEL
                self._gram[begin:end, end:] = self._gram[end:, begin:end].T
            self._gram *= self.tokens / max(self._gram_tokens, 1)
            self._gram_tokens = self.tokens
            self._is_mirrored = True
        return self._gram

    def _add_to_sample(self, rows: torch.Tensor) -> None:
        """Keep the rows with the largest random keys: a uniform sample of all rows so far."""
        assert self._sample is not None
        keys = torch.cat([self._keys, torch.rand(len(rows), generator=self._random)])
        kept = torch.topk(keys, len(self._keys)).indices.sort().values
        old = kept < len(self._keys)
        fresh = rows[(kept[~old] - len(self._keys)).to(rows.device)]
        self._sample = torch.cat([self._sample[kept[old].to(rows.device)], fresh])
        self._keys = keys[kept]

    def errors(self, difference: torch.Tensor) -> torch.Tensor:
        """Squared output error over all tokens of each row: D G D^T's diagonal, float32 [out].

        difference: D, float32 [out, in].
        """
        if self._gram is not None:
            errors: torch.Tensor = torch.linalg.vecdot(difference @ self._whole_gram(), difference)
            return errors.clamp_(min=0)
        rows = self._filled_sample()
        return (difference @ rows.T).square().sum(dim=1) * (self.tokens / max(len(rows), 1))

    def summed_error(
        self, weight: torch.Tensor, difference: Callable[[slice], torch.Tensor]
    ) -> float:
        """Squared output error over all tokens and rows of a weight [out, in].

        difference: `errors`' D of some rows, float32 [rows, in]. On a CPU it is asked for piece by
        piece, so that neither D nor D G is ever whole.
        """
        errors = [self.errors(difference(rows)) for rows in row_pieces(weight)]
        return float(torch.cat(errors).sum())

    def diagonal_blocks(self, group_size: int) -> torch.Tensor:
        """The diagonal blocks of G: float32 [in / group, group, group]."""
        if self._gram is not None:
            gram = self._whole_gram()
            count = len(gram) // group_size
            blocks = gram.reshape(count, group_size, count, group_size)
            return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
        rows = self._filled_sample()
        pieces = rows.reshape(len(rows), -1, group_size).transpose(0, 1)  # [groups, T, group]
        return pieces.transpose(1, 2) @ pieces * (self.tokens / max(len(rows), 1))

    @property
    def gram(self) -> torch.Tensor | None:
        """G, float32 [in, in]; None where a sample of tokens stands for it."""
        return None if self._gram is None else self._whole_gram()

    def is_finite(self) -> bool:
        """False also where a square, and with it G, is beyond float32."""
        sums = [self._sum_abs] if self._gram is None else [self._sum_abs, self._gram.diagonal()]
        return all(bool(torch.isfinite(each).all()) for each in sums)

    def _filled_sample(self) -> torch.Tensor:
        assert self._sample is not None
        filled = self._keys >= 0
        return self._sample if filled.all() else self._sample[filled.to(self._sample.device)]


class WeightsOnly:
    """An input that was not observed: G = 1, so that a linear's error is that of its weights."""

    tokens, is_sampled, is_paired, gram = 1, False, False, None

    def target(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight itself."""
        return weight

    def inverse_factor(self, scale: torch.Tensor | None = None) -> None:
        """None: there is no G to factorise."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def summed_error(
        self, weight: torch.Tensor, difference: Callable[[slice], torch.Tensor]
    ) -> float:
        """Squared error of all weights; see `InputStatistics.summed_error`."""
        return sum(float(difference(rows).square().sum()) for rows in row_pieces(weight))


def plan_samples(in_features: Mapping[str, int], budget_bytes: int) -> dict[str, int | None]:
    """Tokens to sample for each input of a block, None where its G fits the budget.

    From the smallest input to the largest, each may take an even share of what is left: a G that
    took more would leave the others a sample of a few tokens. in_features: by input. budget_bytes:
    of the whole block.
    """
    plan: dict[str, int | None] = {}
    left = budget_bytes
    for index, (name, size) in enumerate(sorted(in_features.items(), key=lambda item: item[1])):
        gram = size * size * _FLOAT_BYTES
        share = left // (len(in_features) - index)
        if gram <= share:
            plan[name] = None
            left -= gram
            continue
        plan[name] = max(1, min(_SAMPLE_TOKENS, share // (size * _FLOAT_BYTES)))
        left -= (plan[name] or 0) * size * _FLOAT_BYTES
    return plan
