"""Tasks and texts on a GPU: the arithmetic of the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from awq_edge.evaluate.arrays import to_host
from awq_edge.evaluate.divergence import compare
from awq_edge.evaluate.logits_models import open_logits_model
from awq_edge.evaluate.perplexity import negative_log_likelihoods
from awq_edge.evaluate.task_model import Continuation, open_task_model
from awq_edge.runtime.generation import Request
from awq_edge.runtime.tokenizer import Tokenizer

torch = pytest.importorskip("torch", reason="needs the [host] extra")

# float32 products in another order, summed over some tokens.
TOLERANCE = 2e-3
# float64 sums of the same float32 logits in another order; float32 exponentials for likelihoods.
SAME_KL, ROUNDING, SAME_LIKELIHOOD = 1e-9, 1e-14, 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_logits_are_compared_where_they_are() -> None:
    model = open_logits_model("demo", window=256, device="cuda", dtype="float32", threads=None)
    ids = model.tokenizer.encode("The people of the United States have " * 20)[:200]
    (reference,) = model.logits(ids, 0)
    assert isinstance(reference, torch.Tensor) and reference.is_cuda
    target = reference + 0.1 * torch.sin(37 * reference)
    targets = np.asarray([*ids[1:], 5])
    model.close()
    expected = compare(to_host(target), to_host(reference), targets)
    found = compare(target, reference, targets)
    for name in ("kl", "nll", "reference_nll", "same_top1", "shared_top5"):
        values = getattr(expected, name)
        np.testing.assert_allclose(
            getattr(found, name), values, rtol=SAME_KL, atol=ROUNDING, err_msg=name
        )
    np.testing.assert_allclose(
        negative_log_likelihoods(target, targets), expected.nll, rtol=SAME_LIKELIHOOD
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_cuda_gives_the_results_of_the_cpu() -> None:
    found: dict[str, Any] = {}
    for device, batch_size in (("cpu", 1), ("cuda", 4)):
        model = open_task_model(
            "demo",
            context=None,
            batch_size=batch_size,
            device=device,
            dtype=None,
            threads=None,
        )
        tokenizer: Tokenizer = model.tokenizer
        prompts = [
            tokenizer.encode("The people of the United States have " * n) for n in (1, 2, 9, 30, 4)
        ]
        asked = [Continuation(tuple(ids[:-3]), tuple(ids[-3:])) for ids in prompts]
        likelihoods = dict(model.likelihoods(asked))
        requests = [Request(prompt_ids=ids, max_new_tokens=16) for ids in prompts]
        found[device] = likelihoods, dict(sorted(model.answers(requests)))
        model.close()
    (cpu, cpu_texts), (cuda, cuda_texts) = found["cpu"], found["cuda"]
    for index, one in cpu.items():
        assert cuda[index].log_likelihood == pytest.approx(one.log_likelihood, abs=TOLERANCE)
        assert cuda[index].is_greedy == one.is_greedy
    assert cuda_texts == cpu_texts
