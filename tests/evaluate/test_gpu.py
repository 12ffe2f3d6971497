"""Tasks on a GPU: the arithmetic of the CPU, in batches."""

from __future__ import annotations

from typing import Any

import pytest

from awq_edge.evaluate.task_model import Continuation, open_task_model
from awq_edge.runtime.generation import Request
from awq_edge.runtime.tokenizer import Tokenizer

torch = pytest.importorskip("torch", reason="needs the [host] extra")

# float32 products in another order, summed over some tokens.
TOLERANCE = 2e-3


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
