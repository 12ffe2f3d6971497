"""The server by the `openai` package, against a real process with a real bundle."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from awq_edge.artifacts.sampling_keys import FALLBACK
from awq_edge.runtime.model import load

from .conftest import RunningServer, StartServer

openai = pytest.importorskip("openai", reason="needs the [dev] extra")

BAD_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}}
# Text of whole characters, which the bytes of a random model are not.
LETTER_SCHEMA = {"type": "string", "pattern": "^[a-z]{9}$"}
LETTERS = {"type": "json_schema", "json_schema": {"name": "x", "schema": LETTER_SCHEMA}}
QUESTION: Any = [{"role": "user", "content": "Good morning"}]


@pytest.fixture(scope="module")
def server(start_server: StartServer, tiny_chat_bundle: Path) -> RunningServer:
    # The key comes from the environment: on the command line anyone could read it.
    return start_server(tiny_chat_bundle, "--model-name", "tiny", AWQ_EDGE_API_KEY="key")


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Any:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="key", max_retries=0, timeout=60)


def chat(client: Any, **extra: Any) -> Any:
    settings = {"model": "tiny", "messages": QUESTION, "max_tokens": 12, "seed": 7, **extra}
    return client.chat.completions.create(**settings)


def complete(client: Any, **extra: Any) -> Any:
    settings = {"model": "tiny", "prompt": "Once upon", "max_tokens": 12, "seed": 7, **extra}
    return client.completions.create(**settings)


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "awq-edge"
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
        client.models.retrieve("gpt-4o")
    assert complete(client, model="other").model == "tiny"


def test_a_chat_is_what_the_model_says_without_a_server(
    client: Any, tiny_chat_bundle: Path
) -> None:
    answer = chat(client, temperature=0.8, top_p=0.9)
    rest = {"top_k": FALLBACK.top_k, "min_p": FALLBACK.min_p}
    with load(tiny_chat_bundle, threads=1) as model:
        settings = {"max_new_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 7, **rest}
        expected = model.generate(QUESTION, **settings)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == ("length" if len(expected.ids) == 12 else "stop")
    assert answer.usage.prompt_tokens == len(expected.prompt_ids)
    assert answer.usage.completion_tokens == len(expected.ids)
    assert answer.usage.total_tokens == len(expected.prompt_ids) + len(expected.ids)
    assert answer.object == "chat.completion"


def test_a_completion_of_text_and_of_token_ids(client: Any, tiny_chat_bundle: Path) -> None:
    with load(tiny_chat_bundle, threads=1) as model:
        ids = model.tokenizer.encode("Once upon")
        expected = model.generate("Once upon", max_new_tokens=12, seed=7, **FALLBACK.given())
    for prompt in ("Once upon", ["Once upon"], ids, [ids]):
        answer = complete(client, prompt=prompt)
        assert answer.choices[0].text == expected.text
        assert answer.usage.prompt_tokens == len(ids)


def test_streams_join_to_the_whole_and_count_tokens_where_asked(client: Any) -> None:
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert len({chunk.id for chunk in chunks}) == 1
    pieces = list(complete(client, stream=True))
    assert "".join(p.choices[0].text for p in pieces) == complete(client).choices[0].text
    assert pieces[-1].choices[0].finish_reason == "length"
    assert all(piece.usage is None for piece in pieces)


def test_a_seed_repeats_and_greedy_needs_none(client: Any) -> None:
    texts = [complete(client, seed=seed).choices[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    greedy = [complete(client, temperature=0, seed=seed).choices[0].text for seed in (1, 2)]
    assert greedy[0] == greedy[1]


def test_a_stop_text_ends_the_answer_before_it(client: Any) -> None:
    text = complete(client).choices[0].text
    stop = text[5:8]
    answer = complete(client, stop=[stop, "never comes"])
    assert answer.choices[0].text == text[: text.find(stop)]
    assert answer.choices[0].finish_reason == "stop"
    streamed = "".join(p.choices[0].text for p in complete(client, stop=stop, stream=True))
    assert streamed == answer.choices[0].text


def test_logprobs_of_a_completion(client: Any) -> None:
    answer = complete(client, logprobs=3, temperature=0)
    found = answer.choices[0].logprobs
    assert len(found.tokens) == answer.usage.completion_tokens
    for token, logprob, top in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert len(top) == 3
        assert max(top, key=top.get) == token  # greedy takes the likeliest
        assert top[token] == logprob <= 0
        assert sum(math.exp(value) for value in top.values()) <= 1 + 1e-6


def test_places_of_tokens_in_a_completion(client: Any) -> None:
    answer = complete(client, logprobs=0, extra_body={"response_format": LETTERS})
    found, text = answer.choices[0].logprobs, answer.choices[0].text
    assert "".join(found.tokens) == text
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        assert text[offset : offset + len(token)] == token


def test_no_logprobs_of_text_that_a_stop_keeps_back(client: Any) -> None:
    letters = {"response_format": LETTERS}
    whole = complete(client, extra_body=letters).choices[0].text
    stop = whole[4:7]
    wanted = {"logprobs": 0, "stop": [stop], "extra_body": letters}
    shown, tokens = "", []
    for piece in complete(client, stream=True, **wanted):
        shown += piece.choices[0].text
        found = piece.choices[0].logprobs
        tokens += found.tokens if found else []
        # The last may reach beyond; none begins there.
        assert len("".join(tokens[:-1])) < max(1, len(shown))
    assert shown == whole[: whole.index(stop)] and "".join(tokens).startswith(shown)


def test_logprobs_of_a_chat_streamed_and_not(client: Any) -> None:
    wanted = {"logprobs": True, "top_logprobs": 2, "temperature": 0, "response_format": LETTERS}
    answer = chat(client, **wanted)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    data = b"".join(bytes(token.bytes) for token in content)
    assert data.decode() == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 2 for token in content)
    streamed = [
        token
        for chunk in chat(client, stream=True, **wanted)
        if chunk.choices and chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [token.bytes for token in streamed] == [token.bytes for token in content]
    # The second prompt was in the cache: the same sums, in another order.
    expected = [token.logprob for token in content]
    assert [token.logprob for token in streamed] == pytest.approx(expected, abs=1e-4)
    plain = chat(client, logprobs=True)
    assert plain.choices[0].logprobs.content[0].top_logprobs == []
    assert chat(client).choices[0].logprobs is None


def test_logprobs_end_where_a_stop_text_begins(client: Any) -> None:
    wanted = {"extra_body": {"response_format": LETTERS}, "logprobs": 1}
    text = complete(client, **wanted).choices[0].text
    answer = complete(client, stop=text[4:7], **wanted)
    shown, tokens = answer.choices[0].text, answer.choices[0].logprobs.tokens
    assert shown == text[:4]
    assert "".join(tokens).startswith(shown)
    assert len("".join(tokens[:-1])) < len(shown)


def test_json_of_a_schema(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}, "nights": {"type": "integer"}},
        "required": ["city", "nights"],
        "additionalProperties": False,
    }
    schema["properties"]["nights"] |= {"minimum": 1, "maximum": 30}  # type: ignore[index]
    wanted = {"type": "json_schema", "json_schema": {"name": "trip", "schema": schema}}
    for seed in range(3):
        answer = chat(client, response_format=wanted, max_tokens=100, seed=seed)
        trip = json.loads(answer.choices[0].message.content)
        assert trip["city"] in ("Rome", "Oslo")
        assert 1 <= trip["nights"] <= 30
        assert answer.choices[0].finish_reason == "stop"
    streamed = chat(client, response_format=wanted, max_tokens=100, seed=2, stream=True)
    text = "".join(c.choices[0].delta.content or "" for c in streamed)
    assert json.loads(text) == trip
    anything = chat(client, response_format={"type": "json_object"}, max_tokens=150, seed=1)
    assert anything.choices[0].message.content.startswith("{")


def test_a_shared_beginning_is_not_computed_again(client: Any) -> None:
    first = complete(client, prompt="Once upon a time there was a little girl", max_tokens=1)
    again = complete(client, prompt="Once upon a time there was a little girl named", max_tokens=1)
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert cached >= first.usage.prompt_tokens - 2
    other = complete(client, prompt="Good morning", max_tokens=1)
    assert other.usage.prompt_tokens_details.cached_tokens <= 1  # the token before every text


@pytest.mark.parametrize(
    ("extra", "code", "param"),
    [
        ({"n": 2}, "unsupported_parameter", "n"),
        ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
        (
            {"messages": [{"role": "user", "content": "word " * 900}]},
            "context_length_exceeded",
            "messages",
        ),
        ({"top_logprobs": 2}, None, "top_logprobs"),
        ({"extra_body": {"stream_options": {"include_usage": True}}}, None, "stream_options"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, None, "max_tokens"),
        ({"response_format": BAD_SCHEMA}, "invalid_schema", "response_format"),
    ],
)
def test_bad_requests_say_what_is_wrong(client: Any, extra: Any, code: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, **extra)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    if code is not None:
        assert refused.value.code == code


def test_our_own_sampling_parameters_through_extra_body(client: Any) -> None:
    one = complete(client, extra_body={"top_k": 1}, seed=5).choices[0].text
    assert one == complete(client, temperature=0).choices[0].text


@pytest.mark.parametrize("key", ["wrong", "key2", "ke"])
def test_without_the_key_nothing_is_served(server: RunningServer, key: str) -> None:
    other = openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="API key is missing or wrong"):
        other.models.list()
    with pytest.raises(openai.AuthenticationError):
        complete(other)
