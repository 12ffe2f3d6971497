"""Bodies: what is taken, what is refused, and that nothing is ignored that would matter."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awq_edge.serve.api_error import ApiError
from awq_edge.serve.schema import UNLIMITED_TOKENS, ChatRequest, CompletionRequest, parse

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
        ({"verbosity": "high"}, "verbosity"),
        ({"store": True}, "store"),
        ({"temprature": 0.5}, "temprature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"seed": -2}, "seed"),
        ({"seed": 10**30}, "seed"),
        ({"stop": ["a"] * 257}, "stop"),
        ({"stop": ["a" * 10_001]}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["a", None]}, "stop[1]"),
        ({"stop": 7}, "stop"),
        ({"int": 1}, "int"),
        ({"str": 1}, "str"),
        ({"foo-bar": 1}, "foo-bar"),
        ({"list[str]": 1}, "list[str]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usag": True}}, "stream_options.include_usag"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"model": 5}, "model"),
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
        {"stop": [f"end{i}" for i in range(14)]},
    ],
)
def test_what_asks_for_nothing_is_taken(extra: dict[str, Any]) -> None:
    assert parse(json.dumps({**CHAT, **extra}).encode(), ChatRequest).model == "m"


@pytest.mark.parametrize(
    ("extra", "name", "value"),
    [
        ({"top_p": 0}, "top_p", 1),
        ({"top_p": -1}, "top_p", 1),
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": 40.0}, "top_k", 40),
        ({"min_p": -1}, "min_p", 0),
        ({"repetition_penalty": 0}, "repetition_penalty", 1),
        ({"seed": -1}, "seed", None),
        ({"max_tokens": -1}, "max_tokens", UNLIMITED_TOKENS),
        ({"max_tokens": 5.0}, "max_tokens", 5),
        ({"stop": "a"}, "stop", ["a"]),
        ({"model": None}, "model", None),
    ],
)
@pytest.mark.parametrize(("body", "model"), [(TEXT, CompletionRequest), (CHAT, ChatRequest)])
def test_the_words_of_clients_for_off(
    body: dict[str, Any], model: Any, extra: dict[str, Any], name: str, value: object
) -> None:
    assert getattr(parse(json.dumps({**body, **extra}).encode(), model), name) == value


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({**TEXT, "stop": ["a"] * 300}, "at most 256 items"),
        ({**TEXT, "stop": {"a": 1}}, "a text or a list of texts"),
        ({**TEXT, "stop": [1]}, "stop[0] is 1; Input should be a valid string"),
        ({**TEXT, "prompt": 1}, "a text, token ids, or a list of one of these"),
        ({**TEXT, "prompt": [1, "a"]}, "prompt[1]"),
        ({**TEXT, "prompt": ["a", 1]}, "2 prompts"),
        ({**TEXT, "prompt": [[1, 2.5]]}, "prompt[1] is 2.5; a token id is a whole number"),
        ({**TEXT, "prompt": [True]}, "prompt[0]"),
        ({**TEXT, "prompt": None}, "prompt is null"),
        ({**TEXT, "foo-bar": 1}, "unknown parameter foo-bar"),
        ({**TEXT, "prompt": "a\ud800"}, "half of a surrogate pair"),
        ({**TEXT, "response_format": "json"}, 'response_format is "json"; it must be an object'),
        ({**TEXT, "stream_options": 1}, "it must be an object"),
    ],
)
def test_a_reason_is_of_what_was_meant(body: dict[str, Any], reason: str) -> None:
    assert reason in str(refusal(body))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (5, "a text or a list of parts"),
        ([5], "messages[0].content[0]"),
        ([{"type": "text"}], "messages[0].content[0].text is missing"),
        ([{"type": "text", "text": 5}], "messages[0].content[0].text is 5"),
        ([{"type": "text", "text": "a", "colour": 1}], "content[0].colour"),
        ([{"text": "a"}], "content[0].type is missing"),
    ],
)
def test_a_reason_of_a_content_is_of_what_was_meant(content: object, reason: str) -> None:
    body = {"messages": [{"role": "user", "content": content}]}
    assert reason in str(refusal(body, ChatRequest))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "tool", "content": "4", "tool_call_id": "x"}, "role tool"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "image_url"),
        ({"role": "assistant", "content": "a", "tool_calls": [{}]}, "tool_calls"),
        ({"role": "user", "colour": "red", "content": "Hi"}, "colour"),
        ({"role": "assistant", "content": "Hi", "prefix": True}, "prefix"),
        ({"role": "user", "content": "Hi", "images": ["data"]}, "images"),
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
    cached = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    parts = {"role": "user", "name": "Ann", "content": [cached, "b"]}
    empty = {"role": "assistant", "content": None, "refusal": "No."}
    found = parse(json.dumps({**CHAT, "messages": [answer, parts, empty]}).encode(), ChatRequest)
    assert [message.role for message in found.messages] == ["assistant", "user", "assistant"]
    assert [part.text for part in found.messages[1].content or ()] == ["a", "b"]
    assert found.messages[2].refusal == "No."


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


def test_a_byte_order_mark_before_the_body_is_no_part_of_it() -> None:
    body = b"\xef\xbb\xbf" + json.dumps(TEXT).encode()
    assert parse(body, CompletionRequest).prompt == "Hi"
