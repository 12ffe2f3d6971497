"""Thoughts over HTTP: apart from the answer, whole and streamed, and free of its schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the [serve] extra")

from awq_edge.runtime.chat_template import ChatTemplate
from awq_edge.runtime.model import Model, load
from awq_edge.serve.limits import Limits
from awq_edge.serve.service import Service
from tests.runtime.fakes import ScriptedSession
from tests.serve.test_app import Answer, call

MESSAGES = [{"role": "user", "content": "What is 2 + 2, and what does </think> mean?"}]
OPENED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.reasoning_content %}[{{ m.reasoning_content }}]{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ '<think>\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}"
    "{{ reasoning_effort }}{% endif %}"
)
CLOSED = OPENED.replace("{{ '<think>\n' }}", "")
THOUGHT = "Okay, let me</think>\n\nThe answer is 4."

Serve = Callable[..., Service]


@pytest.fixture
def serve(tiny_chat_bundle: Path) -> Iterator[Serve]:
    """serve(template, what the model writes): a service of a model that writes that, then ends."""
    services: list[Service] = []
    with load(tiny_chat_bundle, threads=1) as real:

        def start(source: str, written: str, **options: Any) -> Service:
            tokenizer = real.tokenizer
            ids = [*tokenizer.encode(written, add_special_tokens=False), tokenizer.eos_token_id]

            def following(cached: Any) -> int:
                """What comes behind as many tokens as were decoded since the prompt."""
                kinds = [kind for kind, _ in session.calls]
                place = kinds[::-1].index("prefill")
                return ids[min(place, len(ids) - 1)]

            session = ScriptedSession(
                following, vocab_size=real.session.vocab_size, prefill_chunk=1000
            )
            template = ChatTemplate(source, tokenizer.special_tokens)
            model = Model(real.bundle, session, tokenizer, template, real.load_figures)
            service = Service(model, limits=Limits(), **options)
            service.scheduler.start()
            services.append(service)
            return service

        yield start
        for service in services:
            assert service.scheduler.stop(10)


def chat(service: Service, **body: Any) -> Answer:
    asked = {"model": "tiny-chat", "messages": MESSAGES, "temperature": 0, **body}
    return call(service, "/v1/chat/completions", json.dumps(asked).encode())


def message(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    found: dict[str, Any] = json.loads(answer.body)["choices"][0]["message"]
    return found


@pytest.mark.parametrize(
    ("source", "written"), [(OPENED, THOUGHT), (CLOSED, "<think>\n" + THOUGHT)]
)
def test_a_whole_answer_has_its_thoughts_apart(serve: Serve, source: str, written: str) -> None:
    answer = chat(serve(source, written))
    assert message(answer) == {
        "role": "assistant",
        "content": "The answer is 4.",
        "refusal": None,
        "reasoning_content": "Okay, let me",
    }
    usage = json.loads(answer.body)["usage"]
    details = usage["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < details < usage["completion_tokens"]


def test_a_stream_has_its_thoughts_apart(serve: Serve) -> None:
    answer = chat(serve(OPENED, THOUGHT), stream=True)
    lines = [line[6:] for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
    thoughts = [d["reasoning_content"] for d in deltas if "reasoning_content" in d]
    texts = [d["content"] for d in deltas if "content" in d]
    assert "".join(thoughts) == "Okay, let me" and len(thoughts) > 2
    assert "".join(texts) == "The answer is 4."
    assert not any("content" in d and "reasoning_content" in d for d in deltas)


def test_thoughts_that_are_cut_are_no_answer(serve: Serve) -> None:
    answer = chat(serve(OPENED, THOUGHT), max_tokens=4)
    found = message(answer)
    assert found["content"] == "" and "Okay, let me".startswith(found["reasoning_content"])
    assert found["reasoning_content"]
    assert json.loads(answer.body)["choices"][0]["finish_reason"] == "length"


def test_no_thoughts_no_key(serve: Serve) -> None:
    service = serve(OPENED, "The answer is 4.")
    found = message(chat(service, chat_template_kwargs={"enable_thinking": False}))
    assert found == {"role": "assistant", "content": "The answer is 4.", "refusal": None}


@pytest.mark.parametrize(
    "body",
    [
        {"enable_thinking": False},
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
)
def test_thinking_is_switched_off(serve: Serve, body: dict[str, Any]) -> None:
    assert message(chat(serve(OPENED, "Four."), **body))["content"] == "Four."


def test_the_servers_own_variables_are_below_the_requests(serve: Serve) -> None:
    service = serve(OPENED, "Four.", variables={"enable_thinking": False})
    assert message(chat(service))["content"] == "Four."
    on = message(chat(service, chat_template_kwargs={"enable_thinking": True}, max_tokens=2))
    assert on["content"] == ""


def test_reserved_variables_are_refused(serve: Serve) -> None:
    answer = chat(serve(OPENED, "x"), chat_template_kwargs={"messages": []})
    assert answer.status == 400 and "messages" in answer.error["message"]


@pytest.mark.parametrize(
    ("source", "written"),
    [
        (OPENED, "Okay</think>\n\nno JSON"),
        (CLOSED, "<think>Okay</think>no JSON"),
        (CLOSED, "no JSON"),
    ],
)
def test_a_schema_holds_for_the_answer(serve: Serve, source: str, written: str) -> None:
    schema = {"enum": ["yes", "no"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    found = message(chat(serve(source, written), response_format=wanted, max_tokens=60))
    assert json.loads(found["content"]) in schema["enum"]
    assert found.get("reasoning_content", "Okay") == "Okay"
    assert ("reasoning_content" in found) == ("Okay" in written)


def test_log_probabilities_are_of_the_answer(serve: Serve) -> None:
    answer = chat(serve(OPENED, "Hm</think>Four."), logprobs=True)
    tokens = json.loads(answer.body)["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == "Four."


def test_stop_texts_and_ids_end_the_answer(serve: Serve) -> None:
    written = "One\n\ntwo</think>three\n\nfour"
    found = message(chat(serve(OPENED, written), stop="\n\n"))
    assert (found["reasoning_content"], found["content"]) == ("One\n\ntwo", "three")
    service = serve(OPENED, "a</think>x;y")
    semicolon = service.model.tokenizer.encode(";", add_special_tokens=False)
    found = message(chat(service, stop_token_ids=semicolon))
    assert found["content"] == "x"


def test_what_came_back_is_taken_again(serve: Serve) -> None:
    service = serve(OPENED, THOUGHT)
    first = message(chat(service))
    talk = [*MESSAGES, first, {"role": "user", "content": "Sure?"}]
    assert chat(service, messages=talk).status == 200
    rendered = service.model.render(talk)
    assert "The answer is 4.[Okay, let me]" in rendered
    renamed = {"role": "assistant", "content": "Four.", "reasoning": "Hm"}
    assert chat(service, messages=[*MESSAGES, renamed, talk[-1]]).status == 200


def test_a_last_answer_is_continued(serve: Serve) -> None:
    service = serve(OPENED, "Hm</think>Four.")
    ends = [*MESSAGES, {"role": "assistant", "content": "The answer is"}]

    def tokens(**body: Any) -> int:
        answer = chat(service, messages=ends, max_tokens=1, **body)
        assert answer.status == 200, answer.body
        count: int = json.loads(answer.body)["usage"]["prompt_tokens"]
        return count

    continued = tokens()
    assert continued == tokens(continue_final_message=True)
    assert continued < tokens(add_generation_prompt=True)
    both = chat(service, messages=ends, continue_final_message=True, add_generation_prompt=True)
    assert both.status == 400 and "exclude" in both.error["message"]


def test_a_broken_template_is_named_and_completions_go_on(serve: Serve) -> None:
    service = serve("{% for m in messages %}{{ m.content }", "Four.")
    answer = chat(service)
    assert answer.status == 400 and answer.error["code"] == "broken_chat_template"
    assert "line 1" in answer.error["message"]
    body = json.dumps({"prompt": "Hi", "max_tokens": 3, "temperature": 0}).encode()
    assert call(service, "/v1/completions", body).status == 200


def test_a_template_that_never_ends_is_named(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from awq_edge.process import worker_process
    from awq_edge.runtime import template_process

    monkeypatch.setattr(worker_process, "CPU_SECONDS", 0.3)
    monkeypatch.setattr(template_process, "_pool", template_process.new_pool())
    loops = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    service = serve("{% if messages[0].content == 'x' %}" + loops + "{% endif %}" + CLOSED, "Four.")
    slow = chat(service, messages=[{"role": "user", "content": "x"}])
    assert slow.status == 400 and "was ended" in slow.error["message"]
    assert message(chat(service))["content"] == "Four."
    template_process._pool.close()


def test_one_bos_and_not_two(serve: Serve) -> None:
    service = serve(OPENED, "Four.")
    tokenizer = service.model.tokenizer
    counts = []
    for prompt, special in (("Hi", True), ("Hi", False)):
        body = {"prompt": prompt, "max_tokens": 1, "add_special_tokens": special}
        answer = call(service, "/v1/completions", json.dumps(body).encode())
        assert answer.status == 200, answer.body
        counts.append(json.loads(answer.body)["usage"]["prompt_tokens"])
    assert counts == [
        len(tokenizer.encode("Hi")),
        len(tokenizer.encode("Hi", add_special_tokens=False)),
    ]


def test_a_text_that_ends_the_templates_turns_ends_the_answer(serve: Serve) -> None:
    source = CLOSED.replace("<|im_end|>", "<|over|>")
    found = message(chat(serve(source, "Four.<|over|>\n<|im_start|>user\nMore")))
    assert found["content"] == "Four."
