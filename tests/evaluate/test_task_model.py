"""Likelihoods and answers against transformers, through a bundle and through torch in batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awq_edge.errors import ConfigError, ModelError
from awq_edge.evaluate.task_model import (
    Continuation,
    Likelihood,
    TaskModel,
    likelihood,
    open_task_model,
)
from awq_edge.runtime.generation import Request
from awq_edge.runtime.sampling import Sampling
from awq_edge.runtime.tokenizer import Tokenizer
from tests.tiny_models import EOS, TEXT

torch = pytest.importorskip("torch", reason="needs the [host] extra")

# The same float32 arithmetic in another order, summed over some tokens.
SAME_ARITHMETIC = 2e-4
NEW_TOKENS = 12
# Tokens that texts of the tiny model are cut into; one prompt fills several prefill chunks of 32.
LENGTHS = (1, 2, 7, 31, 32, 33, 70)


@pytest.fixture(scope="module")
def reference(tiny_llama: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)


@pytest.fixture(scope="module")
def ids(tiny_llama: Path) -> list[int]:
    return Tokenizer(tiny_llama).encode(TEXT)


def opened(target: Path, *, batch_size: int = 1, context: int | None = None) -> TaskModel:
    options: dict[str, Any] = {"device": None, "dtype": None, "threads": 1}
    return open_task_model(str(target), context=context, batch_size=batch_size, **options)


@pytest.fixture(scope="module", params=["bundle", "model", "model in batches of 3"])
def task_model(
    request: pytest.FixtureRequest, tiny_bundle: Path, tiny_llama: Path
) -> Iterator[TaskModel]:
    target = tiny_bundle if request.param == "bundle" else tiny_llama
    model = opened(target, batch_size=3 if "batches" in request.param else 1)
    yield model
    model.close()


def log_probabilities(model: Any, ids: tuple[int, ...]) -> Any:
    """Of the token after each id: float64 [len(ids), vocab], one sequence, nothing padded."""
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)


def greedy(model: Any, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    found = list(prompt)
    for _ in range(count):
        found.append(int(log_probabilities(model, tuple(found))[-1].argmax()))
    return tuple(found[len(prompt) :])


def test_likelihoods_are_those_of_transformers(
    task_model: TaskModel, reference: Any, ids: list[int]
) -> None:
    asked = [
        Continuation(tuple(ids[:length]), tuple(ids[length : length + count]))
        for length in LENGTHS
        for count in (1, 3, 40)
    ]
    # Choices of one question: the same ids before them, one token each.
    asked += [Continuation(tuple(ids[:20]), (token,)) for token in (5, 200, 7)]
    found = dict(task_model.likelihoods(asked))
    assert sorted(found) == list(range(len(asked)))
    for index, item in enumerate(asked):
        rows = log_probabilities(reference, item.inputs)[len(item.context) - 1 :]
        targets = torch.tensor(item.tokens)
        expected = float(rows.gather(1, targets[:, None]).sum())
        assert found[index].log_likelihood == pytest.approx(expected, abs=SAME_ARITHMETIC)
        assert found[index].is_greedy == bool((rows.argmax(dim=1) == targets).all())
    values = [found[index].log_likelihood for index in range(len(asked))]
    assert len(set(values)) == len(values)


def test_is_greedy_means_every_token(task_model: TaskModel, reference: Any, ids: list[int]) -> None:
    context = tuple(ids[:9])
    best = greedy(reference, context, 4)
    other = [(*best[:i], (best[i] + 1) % 300, *best[i + 1 :]) for i in range(4)]
    asked = [Continuation(context, tokens) for tokens in (best, *other)]
    found = dict(task_model.likelihoods(asked))
    assert [found[i].is_greedy for i in range(5)] == [True, False, False, False, False]


def request(prompt: tuple[int, ...], **options: Any) -> Request:
    return Request(prompt_ids=prompt, max_new_tokens=NEW_TOKENS, **options)


def test_answers_are_the_greedy_texts(
    task_model: TaskModel, reference: Any, ids: list[int]
) -> None:
    """Prompts of all lengths in one call: a batch is as long as its longest."""
    prompts = [tuple(ids[:length]) for length in LENGTHS]
    found = dict(task_model.answers([request(prompt) for prompt in prompts]))
    for index, prompt in enumerate(prompts):
        tokens = greedy(reference, prompt, NEW_TOKENS)
        whole = task_model.tokenizer.decode([*prompt, *tokens])
        before = task_model.tokenizer.decode(prompt)
        assert before + found[index] == whole


def test_answers_end_where_they_should(
    task_model: TaskModel, reference: Any, ids: list[int]
) -> None:
    """By a stop string, a stop token or a length, each in its own row of a batch."""
    prompt = tuple(ids[:33])
    tokens = greedy(reference, prompt, NEW_TOKENS)
    (whole,) = dict(task_model.answers([request(prompt)])).values()
    stop = whole[len(whole) // 2 :][:2]
    stop_at = len(tokens) // 2
    while tokens[stop_at] in tokens[:stop_at]:
        stop_at += 1
    asked = [
        request(prompt, stop=("never in it", stop)),
        request(prompt, stop_token_ids=frozenset({tokens[stop_at]})),
        request(tuple(ids[:5]), stop_token_ids=frozenset({EOS})),
        Request(prompt_ids=prompt, max_new_tokens=1),
        request(prompt, stop=(whole + "!",)),
    ]
    found = dict(task_model.answers(asked))
    assert found[0] == whole.partition(stop)[0] != whole
    before = task_model.tokenizer.decode(prompt)
    cut = task_model.tokenizer.decode([*prompt, *tokens[:stop_at]])
    assert before + found[1].rstrip("\ufffd") == cut.rstrip("\ufffd")
    assert whole.startswith(found[3].rstrip("\ufffd")) and len(found[3]) < len(whole)
    assert found[4] == whole  # what looked like the beginning of a stop string is given out


def test_drawn_answers_are_the_same_everywhere(
    tiny_bundle: Path, tiny_llama: Path, ids: list[int]
) -> None:
    """One sampler over all: the seed decides, not the runtime, the batch or the neighbours."""
    sampling = [Sampling(temperature=0.8, top_k=20, seed=seed) for seed in range(4)]
    asked = [request(tuple(ids[: 4 + i]), sampling=one) for i, one in enumerate(sampling)]
    texts = []
    for target, batch_size in ((tiny_bundle, 1), (tiny_llama, 1), (tiny_llama, 4)):
        model = opened(target, batch_size=batch_size)
        texts.append(dict(sorted(model.answers(asked))))
        model.close()
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0].values())) == 4


def test_a_session_keeps_what_neighbours_share(tiny_bundle: Path, ids: list[int]) -> None:
    """Choices of one question run the question once."""
    model = opened(tiny_bundle)
    session = model._model.session  # type: ignore[attr-defined]
    executed: list[int] = []
    run = session.logits
    session.logits = lambda ids, positions: executed.append(len(ids)) or run(ids, positions)
    question = tuple(ids[:60])
    asked = [Continuation(question, (token,)) for token in (5, 6, 7, 8)]
    asked.insert(2, Continuation(tuple(ids[30:70]), (9,)))
    list(model.likelihoods(asked))
    model.close()
    assert sum(executed) <= 60 + 40 + 3


def test_likelihood_of_output_that_is_not_finite() -> None:
    logits = np.zeros((2, 5), np.float32)
    assert likelihood(logits, (0, 0)) == Likelihood(pytest.approx(-2 * np.log(5)), True)
    logits[1, 3] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        likelihood(logits, (0, 0))


def test_the_context_may_be_less(tiny_bundle: Path, tiny_llama: Path) -> None:
    for target in (tiny_bundle, tiny_llama):
        for context, expected in ((None, 256), (40, 40)):
            model = opened(target, context=context)
            assert model.context == expected
            model.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 1}, "--context 1: must be 2 or more"),
        ({"context": 257}, "--context 257 is beyond the 256 tokens of"),
        ({"batch_size": 0}, "--batch-size 0: must be 1 or more"),
        ({"batch_size": 2}, "--batch-size 2: a bundle runs one sequence at a time"),
    ],
)
def test_what_a_bundle_cannot_do(tiny_bundle: Path, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(tiny_bundle, **options)
