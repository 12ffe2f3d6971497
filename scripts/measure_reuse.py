"""What a KV cache with the model's own generated tokens changes: the table of docs/serve.md.

    python scripts/measure_reuse.py BUNDLE TEXT

Each trial is a conversation's second turn: a prompt, a greedy answer, and more text behind both. It
is run with the cache of the first turn, whose answer was computed token by token, and from nothing,
where all of it is a prompt. A control runs prompts alone, in pieces, behind other requests.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from awq_edge.runtime.generation import common_prefix
from awq_edge.runtime.model import Model, load
from awq_edge.runtime.session import Float32

_PROMPT, _ANSWER, _QUESTION = 120, 40, 20  # tokens of a trial
_LIKELIEST = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("text", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    arguments = parser.parse_args()
    with load(arguments.bundle, context=512) as model:
        text = arguments.text.read_text(encoding="utf-8")[: arguments.trials * 2000]
        ids = model.tokenizer.encode(text)
        print(f"{model.manifest.model_name}, accuracy level {model.manifest.accuracy_level}")
        _report("prompts in other pieces, behind others", *_prompts(model, ids, arguments.trials))
        _report("generated tokens in the cache", *_turns(model, ids, arguments.trials))


def _prompts(model: Model, ids: list[int], trials: int) -> tuple[list[float], int]:
    found, same = [], 0
    for trial in range(trials):
        prompt = ids[trial * 60 : trial * 60 + _PROMPT + trial]
        model.session.reset()
        cold = model.session.prefill(prompt).copy()
        cold_text = _continue(model, prompt, cold)
        model.session.truncate(trial)  # of the request before, a few ids are the same
        for token in prompt[trial:]:
            logits = model.session.prefill([token])
        found.append(_distance(cold, logits))
        same += cold_text == _continue(model, prompt, logits.copy())
    return found, same


def _turns(model: Model, ids: list[int], trials: int) -> tuple[list[float], int]:
    found, same = [], 0
    for trial in range(trials):
        start = trial * 60
        prompt = ids[start : start + _PROMPT]
        model.session.reset()
        answer = _continue(model, prompt, model.session.prefill(prompt).copy())
        question = ids[start + _PROMPT : start + _PROMPT + _QUESTION]
        turn = [*prompt, *answer, *question]
        kept = common_prefix(model.session.cached_ids, turn)
        model.session.truncate(kept)
        warm = model.session.prefill(turn[kept:]).copy()
        warm_text = _continue(model, turn, warm)
        model.session.reset()
        cold = model.session.prefill(turn).copy()
        found.append(_distance(cold, warm))
        same += warm_text == _continue(model, turn, cold)
    return found, same


def _continue(model: Model, prompt: list[int], logits: Float32) -> list[int]:
    """The greedy answer behind a prompt that the session holds."""
    model.session.truncate(len(prompt))
    answer = []
    for _ in range(_ANSWER):
        answer.append(int(logits.argmax()))
        logits = model.session.decode(answer[-1])
    return answer


def _distance(a: Float32, b: Float32) -> float:
    """The largest difference of log-probabilities, of a's likeliest tokens."""
    first, second = (_log_softmax(each.astype(np.float64)) for each in (a, b))
    likeliest = np.argsort(-first)[:_LIKELIEST]
    return float(np.abs(first - second)[likeliest].max())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _report(name: str, found: list[float], same: int) -> None:
    print(
        f"{name}: largest difference of a log-probability, of the {_LIKELIEST} likeliest: median "
        f"{np.median(found):.2g}, maximum {max(found):.2g}; same {_ANSWER} tokens in {same} of "
        f"{len(found)}"
    )


if __name__ == "__main__":
    main()
