"""Bodies: what is taken, what is refused, and that nothing is ignored that would matter."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awq_edge.serve.api_error import ApiError
from awq_edge.serve.schema import ChatRequest, CompletionRequest, parse

TEXT = {"model": "m", "prompt": "Hi"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def refusal(body: dict[str, Any] | bytes, model: Any = CompletionRequest) -> ApiError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ApiError) as refused:
        parse(raw, model)
    error = refused.value
    assert error.status == 400
    assert set(error.body()["error"]) == {"message", "type", "param", "code"}  # type: ignore[call-overload]
    return error


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"n": 2}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -1}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"store": True}, "store"),
        ({"temprature": 0.5}, "temprature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"seed": 10**30}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usag": True}}, "stream_options.include_usag"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"model": None}, "model"),
    ],
)
@pytest.mark.parametrize(("body", "model"), [(TEXT, CompletionRequest), (CHAT, ChatRequest)])
def test_what_is_not_understood_is_refused_by_its_name(
    body: dict[str, Any], model: Any, extra: dict[str, Any], param: str
) -> None:
    assert refusal({**body, **extra}, model).param == param


@pytest.mark.parametrize(
    "extra",
    [
        {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "tools": []},
        {"tool_choice": "auto", "store": False, "service_tier": "auto", "logit_bias": None},
        {"user": "someone", "metadata": {"a": "b"}, "parallel_tool_calls": True},
    ],
)
def test_what_asks_for_nothing_is_taken(extra: dict[str, Any]) -> None:
    assert parse(json.dumps({**CHAT, **extra}).encode(), ChatRequest).model == "m"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "tool", "content": "4", "tool_call_id": "x"}, "role tool"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "image_url"),
        ({"role": "assistant", "content": "a", "tool_calls": [{}]}, "tool_calls"),
        ({"role": "user", "name": "Ann", "content": "Hi"}, "name"),
        ({"role": "user"}, "content is missing"),
        ({"role": "user", "content": None}, "content"),
        ({"role": "wizard", "content": "Hi"}, "role"),
        ("Hi", "messages[0]"),
    ],
)
def test_messages_that_cannot_be_answered(message: object, words: str) -> None:
    assert words in str(refusal({**CHAT, "messages": [message]}, ChatRequest))


def test_a_message_of_this_server_can_be_sent_back() -> None:
    answer = {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": None}
    answer |= {"annotations": [], "audio": None, "function_call": None}
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    found = parse(json.dumps({**CHAT, "messages": [answer, parts]}).encode(), ChatRequest)
    assert [message.role for message in found.messages] == ["assistant", "user"]


MALFORMED = {
    "empty": b"",
    "cut": b"{",
    "list": b"[]",
    "text": b'"text"',
    "no UTF-8": b"\xff\xfe",
    "NaN": b'{"model": NaN}',
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 50_000,
    "prompt": b'{"model": "m", "prompt": 1}',
    "no prompt": b'{"model": "m"}',
    "long number": b'{"seed": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_bodies(name: str) -> None:
    assert len(str(refusal(MALFORMED[name]))) < 500


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(body: bytes) -> None:
    try:
        parse(body, CompletionRequest)
    except ApiError as error:
        assert error.status == 400


LEAVES = st.sampled_from([None, True, 0, 1, -7, 2**70, 0.5, -1e300, "", "text", "\ud800", [], {}])
JSON = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(st.just("type"), LEAVES)
NAMES = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, "n", "tools", "user"})


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4))
def test_any_values_are_taken_or_refused(extra: dict[str, Any]) -> None:
    for base, model in ((TEXT, CompletionRequest), (CHAT, ChatRequest)):
        try:
            parse(json.dumps({**base, **extra}).encode(), model)  # type: ignore[type-var]
        except ApiError as error:
            assert error.status == 400
