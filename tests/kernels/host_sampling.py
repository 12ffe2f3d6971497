"""awq_edge_sample and the logarithms of probabilities in NumPy, at host addresses."""

from __future__ import annotations

from typing import Any

import numpy as np

from awq_edge.kernels.interface import Sampler, SamplingParameters
from tests.kernels.host_memory import Array, raw, read
from tests.kernels.sampling_reference import Adjustments, sample


def sample_rows(a: Sampler) -> None:
    """The token of each row by the sampling reference."""
    logits, ids = read(a.logits, (a.rows, a.vocab), a.dtype), raw(a.ids, (a.rows,), np.int64)
    steps = raw(a.step, (a.rows,), np.int64) if a.step else np.zeros(a.rows, np.int64)
    parameters = (SamplingParameters * a.rows).from_address(a.sampling) if a.sampling else None
    counts = raw(a.counts, (a.rows, a.vocab), np.uint32) if a.counts else None
    for row in range(a.rows):
        own = SamplingParameters() if parameters is None else parameters[row]
        given: dict[str, Any] = {"temperature": 0.0 if a.greedy else own.temperature}
        if given["temperature"] > 0:
            given |= {name: getattr(own, name) for name in ("top_k", "top_p", "min_p", "seed")}
            given |= {"sequence": own.sequence, "step": int(steps[row])}
        ids[row] = sample(logits[row], **given, adjustments=_adjustments(a, own, counts, row)).token
        if counts is not None:
            counts[row, ids[row]] += 2


def log_softmax(logits: Array) -> Array:
    """Natural logarithms of the softmax over the last axis, float32."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _adjustments(
    a: Sampler, own: SamplingParameters, counts: Array | None, row: int
) -> Adjustments:
    words = -(-a.vocab // 32)
    mask = None
    if a.mask:
        octets = raw(a.mask, (a.rows, words), np.uint32)[row].view(np.uint8)
        mask = np.unpackbits(octets, bitorder="little")[: a.vocab].astype(bool)
    return Adjustments(
        counts=None if counts is None else counts[row],
        bias=raw(a.bias, (a.rows, a.vocab), np.float32)[row] if a.bias else None,
        mask=mask,
        repetition_penalty=own.repetition_penalty,
        presence_penalty=own.presence_penalty,
        frequency_penalty=own.frequency_penalty,
    )
