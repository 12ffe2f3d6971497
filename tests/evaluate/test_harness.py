"""What the harness asks, as token ids: windows, truncation, stop strings, settings, templates."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awq_edge.errors import ConfigError, ModelError, ResourceError
from awq_edge.evaluate.task_model import Continuation
from awq_edge.runtime.sampling import Sampling
from tests.tiny_models import BOS, EOS, IM_END, TEXT, save_tokenizer

from .fakes import ScriptedTaskModel

pytest.importorskip("lm_eval", reason="needs the [eval] extra")

from awq_edge.evaluate.harness import HarnessModel

SEED = 5


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of single bytes: a text's tokens are its bytes."""
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer") / "bytes", merges=False)


@pytest.fixture(scope="module")
def chat_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer") / "chat", chat=True)


def harness(directory: Path, **options: Any) -> tuple[HarnessModel, ScriptedTaskModel]:
    model = ScriptedTaskModel(directory, **options)
    return HarnessModel(model, seed=SEED, progress=None), model


def asks(*arguments: Any) -> list[Any]:
    """One request of the harness for each tuple of arguments."""
    return [SimpleNamespace(args=one) for one in arguments]


def test_likelihoods_come_back_in_order(directory: Path) -> None:
    lm, model = harness(directory, log_likelihood=lambda asked: -float(len(asked.tokens)))
    found = lm.loglikelihood(asks(("ab", "c"), ("ab", "cdef"), ("", "xy")))
    assert found == [(-1.0, False), (-4.0, False), (-2.0, False)]
    texts = [
        (model.tokenizer.decode(c.context), model.tokenizer.decode(c.tokens))
        for c in model.continuations
    ]
    assert texts == [("ab", "c"), ("ab", "cdef"), ("", "xy")]
    assert [c.context[0] for c in model.continuations] == [BOS] * 3
    assert model.continuations[2].context == (BOS,)


def test_spaces_between_context_and_continuation_are_the_continuations(directory: Path) -> None:
    lm, model = harness(directory)
    lm.loglikelihood(asks(("ab  ", "c")))
    (asked,) = model.continuations
    assert model.tokenizer.decode(asked.tokens) == "  c"


def test_a_continuation_that_melts_into_the_context(tmp_path: Path) -> None:
    """As "he" is one token, nothing is left behind "h": the "e" is scored by itself."""
    lm, model = harness(save_tokenizer(tmp_path / "merged"))
    whole, before = (model.tokenizer.encode(text) for text in ("he", "h"))
    assert len(whole) == len(before), "the example needs a merge"
    lm.loglikelihood(asks(("h", "e")))
    (asked,) = model.continuations
    assert (model.tokenizer.decode(asked.context), model.tokenizer.decode(asked.tokens)) == (
        "h",
        "e",
    )


def test_bos_is_never_doubled(directory: Path) -> None:
    lm, _ = harness(directory)
    assert lm.tok_encode("ab")[:2] == [BOS, lm.tok_encode("a")[1]]
    assert lm.tok_encode("<s>ab") == lm.tok_encode("ab")
    assert lm.tok_encode("ab", add_special_tokens=False) == lm.tok_encode("ab")[1:]


@settings(max_examples=80, deadline=None)
@given(context=st.integers(1, 40), tokens=st.integers(1, 12), room=st.integers(2, 30))
def test_long_contexts_lose_their_beginning(
    directory: Path, context: int, tokens: int, room: int
) -> None:
    lm, model = harness(directory, context=room)
    text = (TEXT[:context].rstrip() + "x")[-context:]
    ask = asks((text, "y" * tokens))
    if tokens > room:
        with pytest.raises(ResourceError, match=f"likelihood of {tokens} tokens, the context"):
            lm.loglikelihood(ask)
        return
    lm.loglikelihood(ask)
    (asked,) = model.continuations
    whole = lm.tok_encode(text + "y" * tokens)
    assert asked.context + asked.tokens == tuple(whole[-(room + 1) :])
    assert len(asked.tokens) == tokens and len(asked.inputs) <= room
    assert lm.truncated == (len(whole) > room + 1)


@settings(max_examples=80, deadline=None)
@given(length=st.integers(1, 90), room=st.integers(2, 40))
def test_rolling_windows_score_every_token_once(directory: Path, length: int, room: int) -> None:
    lm, model = harness(
        directory, context=room, log_likelihood=lambda asked: -float(sum(asked.tokens))
    )
    texts = [TEXT[:length], TEXT[40 : 40 + length]]
    found = lm.loglikelihood_rolling(asks(*((text,) for text in texts)))
    ids = [lm.tok_encode(text, add_special_tokens=False) for text in texts]
    assert found == [-float(sum(one)) for one in ids]
    place = [BOS, *ids[0]]
    scored = 1
    for asked in model.continuations:
        if scored == len(place):
            break
        end = scored + len(asked.tokens)
        assert asked.context + asked.tokens == tuple(place[:end][-(len(asked.inputs) + 1) :])
        assert len(asked.inputs) <= room
        # As much context as the window holds, but for the first.
        assert len(asked.inputs) == min(room, end - 1)
        scored = end
    assert scored == len(place)


def test_rolling_text_of_nothing(directory: Path) -> None:
    lm, model = harness(directory)
    assert lm.loglikelihood_rolling(asks(("",))) == [0.0]
    assert model.continuations == []


def test_an_empty_continuation_is_the_tasks_mistake(directory: Path) -> None:
    lm, _ = harness(directory)
    with pytest.raises(ConfigError, match="likelihood of an empty text"):
        lm.loglikelihood(asks(("ab", "")))


def test_generation_settings(directory: Path) -> None:
    lm, model = harness(directory, answer=lambda prompt: f"{prompt}!\nand more")
    texts = lm.generate_until(
        asks(
            ("one", {"until": ["\n"], "max_gen_toks": 7}),
            ("two", {"until": "!", "max_new_tokens": 9, "do_sample": False, "temperature": 0.7}),
            ("three", {"do_sample": True, "top_p": 0.9, "temperature": 0.5, "num_beams": 1}),
            ("four", {"do_sample": True, "top_k": 4, "until": None}),
            ("five", {"temperature": 0.3, "repetition_penalty": 1.2}),
        )
    )
    assert texts == ["one!", "two", "three!\nand more", "four!\nand more", "five!\nand more"]
    assert [r.max_new_tokens for r in model.requests] == [7, 9, 256, 256, 256]
    assert [r.stop for r in model.requests] == [("\n",), ("!",), (), (), ()]
    assert [r.sampling for r in model.requests] == [
        Sampling(seed=SEED),
        Sampling(seed=SEED + 1),
        Sampling(temperature=0.5, top_p=0.9, seed=SEED + 2),
        Sampling(temperature=1.0, top_k=4, seed=SEED + 3),
        Sampling(temperature=0.3, repetition_penalty=1.2, seed=SEED + 4),
    ]
    assert all(EOS in r.stop_token_ids for r in model.requests)


def test_stop_strings_that_are_special_tokens(directory: Path) -> None:
    """They have no text in an answer: their ids end it. "a" is a token too, but it has a text."""
    lm, model = harness(directory)
    lm.generate_until(asks(("one", {"until": ["<|im_end|>", "a"]})))
    (request,) = model.requests
    assert request.stop_token_ids == {EOS, IM_END}


def test_prompts_leave_room_for_the_answer(directory: Path) -> None:
    lm, model = harness(directory, context=20)
    lm.generate_until(asks((TEXT, {"max_gen_toks": 8}), ("ab", {"max_gen_toks": 8})))
    assert list(model.requests[0].prompt_ids) == lm.tok_encode(TEXT)[-12:]
    assert list(model.requests[1].prompt_ids) == lm.tok_encode("ab")
    assert lm.truncated == 1
    with pytest.raises(ResourceError, match="20 new tokens, the context holds 20; give a larger"):
        lm.generate_until(asks(("ab", {"max_gen_toks": 20})))


@pytest.mark.parametrize(("name", "value"), [("num_beams", 4), ("length_penalty", 1.0)])
def test_settings_that_would_be_ignored_are_refused(
    directory: Path, name: str, value: object
) -> None:
    lm, _ = harness(directory)
    with pytest.raises(ConfigError, match=f"ask for {name}={value}, which this evaluation does"):
        lm.generate_until(asks(("ab", {name: value})))


def test_progress_is_told(directory: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    model = ScriptedTaskModel(directory)
    lm = HarnessModel(model, seed=SEED, progress=lambda *told: seen.append(told))
    lm.loglikelihood(asks(("a", "b"), ("a", "c")))
    lm.generate_until(asks(("a", {})))
    assert seen == [(1, 2, "likelihoods"), (2, 2, "likelihoods"), (1, 1, "answers")]


def test_chat_template(chat_directory: Path, directory: Path) -> None:
    lm, _ = harness(chat_directory)
    lm.require_chat_template()
    messages = [{"role": "user", "content": "Hi "}]
    asked = "<|im_start|>user\nHi <|im_end|>\n"
    assert lm.apply_chat_template(messages) == asked + "<|im_start|>assistant\n"
    # An answer that is begun for the model: its turn stays open.
    begun = [*messages, {"role": "assistant", "content": "\n```python\n"}]
    text = lm.apply_chat_template(begun, add_generation_prompt=False)
    assert text == asked + "<|im_start|>assistant\n\n```python\n"
    with pytest.raises(ConfigError, match="has no chat template"):
        harness(directory)[0].require_chat_template()


def test_chat_templates_of_other_minds(chat_directory: Path, tmp_path: Path) -> None:
    """One that strips messages and refuses a system role."""
    (tmp_path / "other").mkdir()
    for file in chat_directory.iterdir():
        (tmp_path / "other" / file.name).write_text(file.read_text())
    path = tmp_path / "other" / "tokenizer_config.json"
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}[{{ m.content | trim }}]{% endfor %}"
    )
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    lm, _ = harness(tmp_path / "other")
    lm.require_chat_template()
    system = {"role": "system", "content": "be brief"}
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Yes "}
    assert lm.apply_chat_template([system, user]) == "[be brief\n\nHi]"
    assert lm.apply_chat_template([user, answer], add_generation_prompt=False) == "[Hi][Yes"


def test_a_tokenizer_that_names_no_bos_and_no_eos(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    for file in directory.iterdir():
        (tmp_path / "bare" / file.name).write_text(file.read_text())
    config = tmp_path / "bare" / "tokenizer_config.json"
    config.write_text('{"eos_token": "</s>"}')
    lm, model = harness(tmp_path / "bare")
    lm.loglikelihood(asks(("", "ab")))
    assert model.continuations == [
        Continuation((EOS,), tuple(lm.tok_encode("ab", add_special_tokens=False)))
    ]
    config.write_text("{}")
    with pytest.raises(ModelError, match="names neither bos_token nor eos_token"):
        harness(tmp_path / "bare")[0].loglikelihood(asks(("", "ab")))
