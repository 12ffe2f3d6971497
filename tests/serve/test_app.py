"""The routes in this process: what is hard to bring about from outside, such as defects."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the [serve] extra")

from awq_edge.artifacts.sampling_keys import FALLBACK, SamplingKeys
from awq_edge.errors import ConfigError, DeviceError
from awq_edge.runtime.model import Model, load
from awq_edge.serve.api_error import ApiError
from awq_edge.serve.app import create_app
from awq_edge.serve.limits import Limits
from awq_edge.serve.schema import ChatRequest, CompletionRequest
from awq_edge.serve.service import Service

BODY = json.dumps({"model": "tiny-chat", "prompt": "Hi", "max_tokens": 3}).encode()
DOCS = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model(tiny_chat_bundle: Path) -> Iterator[Model]:
    with load(tiny_chat_bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def service(model: Model) -> Iterator[Service]:
    running = Service(model, limits=Limits(body_seconds=0.05))
    running.scheduler.start()
    yield running
    assert running.scheduler.stop(10)


@dataclass
class Answer:
    status: int
    body: bytes

    @property
    def error(self) -> Any:
        return json.loads(self.body)["error"]


def call(
    service: Service,
    path: str = "/v1/completions",
    body: bytes | None = BODY,
    host: str = "127.0.0.1",
    receive: Callable[[], Awaitable[dict[str, Any]]] | None = None,
    connections: int = 1,
) -> Answer:
    """One request. body: None for GET. receive: instead of the body, what the connection gives."""
    sent: list[dict[str, Any]] = []
    given = iter([{"type": "http.request", "body": body or b"", "more_body": False}])

    async def take() -> dict[str, Any]:
        for message in given:
            return message
        return await asyncio.get_running_loop().create_future()  # the client stays

    async def send(message: Any) -> None:
        sent.append(dict(message))

    headers = [(b"host", host.encode()), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET" if body is None else "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 80),
    }

    async def run() -> None:
        # uvicorn logs what comes out of an application; here it is let go.
        try:
            await create_app(service, 0, lambda: connections)(scope, receive or take, send)
        except ZeroDivisionError:
            pass

    asyncio.run(run())
    text = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
    return Answer(sent[0]["status"], text)


def test_a_body_that_does_not_come_is_given_up(service: Service) -> None:
    async def never() -> dict[str, Any]:
        return await asyncio.get_running_loop().create_future()

    answer = call(service, receive=never)
    assert answer.status == 408
    assert "within 0.05 s" in answer.error["message"]


def test_a_client_that_goes_while_it_sends_is_counted(service: Service) -> None:
    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    assert call(service, receive=gone).status == 499
    assert b'status="499"} 1.0' in service.metrics.render()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("secret path /root/x"), "internal_error"),
        (DeviceError("CUDA error 700 secret"), "model_error"),
        (ConfigError("the session is closed; secret"), "model_error"),
    ],
)
def test_a_defect_is_told_without_its_text_and_shows_in_health(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(service.model, "stream_request", broken)
        for _ in range(3):
            answer = call(service)
            assert (answer.status, answer.error["code"]) == (500, code)
            assert b"secret" not in answer.body
            assert service.scheduler.wait_idle(10)
        unwell = call(service, "/health", None)
        assert (unwell.status, json.loads(unwell.body)["status"]) == (503, "failing")
    assert call(service).status == 200
    assert service.scheduler.wait_idle(10)
    assert call(service, "/health", None).status == 200


def test_a_defect_in_a_stream_is_its_last_event(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(logits: object) -> int:
        raise RuntimeError("secret")

    monkeypatch.setattr("awq_edge.runtime.sampling.Sampler.choose", lambda self, x: broken(x))
    answer = call(service, body=BODY[:-1] + b', "stream": true}')
    assert answer.status == 200
    events = [line[6:] for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    assert json.loads(events[-1])["error"]["code"] == "internal_error"
    assert "secret" not in answer.body.decode()


def test_a_defect_of_a_route_is_told_without_its_text(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.metrics, "render", lambda: 1 / 0)
    answer = call(service, "/metrics", None)
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert b"division" not in answer.body


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("localhost", True),
        ("api.localhost:80", True),
        ("192.168.1.5", True),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("", False),
        ("[::1", False),
    ],
)
def test_names_that_a_web_page_could_have(service: Service, host: str, allowed: bool) -> None:
    assert call(service, "/v1/models", None, host=host).status == (200 if allowed else 403)


@pytest.mark.parametrize("path", ["/v1/completions/", "/v1/nothing", "/", "/v1/models/tiny-chat/"])
def test_another_name_is_refused_on_every_path(service: Service, path: str) -> None:
    answer = call(service, path, host="evil.example")
    assert (answer.status, answer.error["code"]) == (403, "host_not_allowed")


def test_a_request_without_a_host_is_no_browser_s(service: Service) -> None:
    assert service.host_allowed(None)


def test_too_many_connections_are_told_in_json(service: Service) -> None:
    most = service.limits.max_connections
    assert call(service, "/health", None, connections=most).status == 200
    answer = call(service, "/health", None, connections=most + 1)
    assert (answer.status, answer.error["code"]) == (503, "too_many_connections")


def test_a_request_s_key_replaces_that_key_alone(model: Model) -> None:
    def sampling(keys: SamplingKeys | None, **request: Any) -> dict[str, Any]:
        body = CompletionRequest(prompt="Hi", **request)
        task = Service(model, limits=Limits(), sampling=keys).completion_task(body)
        return {name: getattr(task.sampling, name) for name in SamplingKeys.model_fields}

    own = {**FALLBACK.given(), "repetition_penalty": 1.0}  # the model names none
    assert sampling(None) == own
    assert sampling(None, temperature=0.2) == {**own, "temperature": 0.2}
    assert sampling(SamplingKeys(top_k=7)) == {**own, "top_k": 7}
    assert sampling(SamplingKeys(top_k=7), top_k=-1, top_p=0) == {**own, "top_k": 0, "top_p": 1}


def test_with_a_key_or_open_to_others_any_name_is_taken(model: Model) -> None:
    for settings in ({"api_key": "k"}, {"local": False}):
        assert Service(model, limits=Limits(), **settings).host_allowed("name.example")  # type: ignore[arg-type]


RIGHT = ("Bearer key", "bearer key", "Bearer  key ")
WRONG = ("Basic key", "Bearer", "key", None, "Bearer kéy", "Bearer key key")


@pytest.mark.parametrize("header", [*RIGHT, *WRONG])
def test_keys(model: Model, header: str | None) -> None:
    right = header in RIGHT
    assert Service(model, limits=Limits(), api_key="key").authorized(header) is right


@pytest.mark.parametrize("limits", [{"max_new_tokens": 0}, {"max_body": 0}, {"max_queue": -1}])
def test_limits_out_of_range(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        Limits(**limits)


def test_no_route_is_there_without_the_key(model: Model) -> None:
    service = Service(model, limits=Limits(), api_key="key")
    for path in ("/openapi.json", "/docs", "/redoc"):
        assert call(service, path, body=None).status in (401, 404), path


def test_an_error_may_name_what_is_no_unicode(service: Service) -> None:
    message = '{"model":"tiny-chat","messages":[{"role":"user","content":[{"type":"\\ud800"}]}]}'
    answer = call(service, "/v1/chat/completions", message.encode())
    assert answer.status == 400 and "half of a surrogate pair" in answer.error["message"]


def test_the_limit_of_new_tokens(model: Model) -> None:
    service = Service(model, limits=Limits(max_new_tokens=5))
    request = CompletionRequest(model="tiny-chat", prompt="Hi", max_tokens=5)
    assert service.completion_task(request).max_new_tokens == 5
    unsaid = CompletionRequest(model="tiny-chat", prompt="Hi")
    assert service.completion_task(unsaid).max_new_tokens == 5
    chat = ChatRequest.model_validate(
        {"model": "m", "messages": [{"role": "developer", "content": "Hi"}]}
    )
    assert service.chat_task(chat).max_new_tokens == 5
    more = request.model_copy(update={"max_tokens": 6})
    assert service.completion_task(more).max_new_tokens == 5


@pytest.mark.parametrize("wanted", [1, 100, 250, 2**31])
def test_max_tokens_are_cut_to_the_room(model: Model, wanted: int) -> None:
    request = CompletionRequest(model="m", prompt=[5] * 50, max_tokens=wanted)
    task = Service(model, limits=Limits()).completion_task(request)
    room = model.session.context - 50 + 1
    assert task.max_new_tokens == (wanted if wanted < room else None)
    full = CompletionRequest(model="m", prompt=[5] * (model.session.context + 1))
    with pytest.raises(ApiError, match="shorten it"):
        Service(model, limits=Limits()).completion_task(full)


def test_the_page_names_every_metric_parameter_and_limit(service: Service) -> None:
    text = service.metrics.render().decode()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    names = {name for name in names if not name.endswith("_created")}
    assert len(names) > 10
    fields = {*CompletionRequest.model_fields, *ChatRequest.model_fields}
    for name in {*names, *fields} - {"model", "messages"}:
        assert re.search(rf"`[^`]*\b{name}\b", DOCS), f"docs/serve.md lacks {name}"
    limits = Limits()
    assert f"| `--max-queue`, {limits.max_queue}, and" in DOCS
    for value in (limits.body_seconds, limits.send_seconds):
        assert f"| {value:g} |" in DOCS
    assert f"| `--shutdown-timeout`, {limits.shutdown_seconds:g} |" in DOCS
    assert f"| `--max-body-bytes`, {limits.max_body:,} |" in DOCS
    assert limits.max_connections == 2 * limits.max_queue + 64
    assert "| 2 x `--max-queue` + 64 |" in DOCS


def test_a_schema_that_only_fails_on_the_way_is_the_request_s_fault(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from awq_edge.serve import grammar

    def beyond(self: object, token_id: int) -> bool:
        raise grammar.GrammarError("too complex")

    monkeypatch.setattr(grammar.GrammarConstraint, "accept", beyond)
    body = json.loads(BODY) | {"response_format": {"type": "json_object"}}
    for _ in range(3):
        answer = call(service, body=json.dumps(body).encode())
        assert (answer.status, answer.error["param"]) == (400, "response_format")
    assert call(service, "/health", None).status == 200
