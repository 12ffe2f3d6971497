"""The server by plain HTTP: errors, limits, disconnects, metrics, and the end of the process."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from .conftest import RunningServer, StartServer

PATIENCE = 20.0
MAX_BODY = 20_000
# Fills the context of 256 unless somebody stops it.
LONG = {"model": "tiny", "prompt": "Once", "max_tokens": 250, "temperature": 0}
ENDLESS: dict[str, Any] = {"type": "string", "pattern": "^[a-z]*$"}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": ENDLESS}}


@pytest.fixture(scope="module")
def server(start_server: StartServer, tiny_chat_bundle: Path) -> RunningServer:
    arguments = ("--model-name", "tiny", "--max-body-bytes", str(MAX_BODY), "--max-queue", "2")
    return start_server(tiny_chat_bundle, *arguments)


def connect(server: RunningServer) -> http.client.HTTPConnection:
    parts = urlsplit(server.address)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE)


def send(
    server: RunningServer,
    body: object,
    path: str = "/v1/completions",
    **headers: str,
) -> tuple[int, Any, dict[str, str]]:
    connection = connect(server)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {"Content-Type": "application/json"}
    names |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", path, raw, names)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text), dict(response.headers)


def get(server: RunningServer, path: str) -> tuple[int, str]:
    connection = connect(server)
    connection.request("GET", path)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def metrics(server: RunningServer) -> dict[str, float]:
    status, text = get(server, "/metrics")
    assert status == 200
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def jobs(server: RunningServer) -> dict[str, float]:
    found = metrics(server)
    names = ("submitted", "refused", "completed", "cancelled", "failed")
    counts = {name: found[f'awq_edge_jobs_total{{state="{name}"}}'] for name in names}
    return counts | {"queued": found["awq_edge_queue_length"], "running": found["awq_edge_running"]}


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"{", {}, 400, "not valid JSON"),
        (b"x" * (MAX_BODY + 1), {}, 413, f"more than {MAX_BODY} bytes"),
        (b"{}", {"Content_Type": "text/plain"}, 415, "send application/json"),
        ({**LONG, "prompt": [5] * 257}, {}, 400, "context"),
        ({**LONG, "prompt": [10**9]}, {}, 400, "vocabulary"),
        ({**LONG, "prompt": "\ud800"}, {}, 400, "half of a surrogate pair"),
        ({**LONG, "prompt": ["a", "b"]}, {}, 400, "2 prompts"),
        (LONG, {"Host": "evil.example"}, 403, "Host header"),
    ],
)
def test_errors_have_the_openai_shape(
    server: RunningServer, body: object, headers: dict[str, str], status: int, words: str
) -> None:
    found, answer, _ = send(server, body, **headers)
    assert found == status
    assert words in answer["error"]["message"]
    assert "Traceback" not in json.dumps(answer)


def test_a_body_without_a_length_is_cut_off_too(server: RunningServer) -> None:
    connection = connect(server)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    for _ in range(3):
        connection.send(b"%x\r\n" % MAX_BODY + b" " * MAX_BODY + b"\r\n")
    response = connection.getresponse()
    assert response.status == 413
    connection.close()


@pytest.mark.parametrize(
    ("path", "status"), [("/", 404), ("/v1/completions", 405), ("/v1/models/other", 404)]
)
def test_other_paths(server: RunningServer, path: str, status: int) -> None:
    found, text = get(server, path)
    assert found == status
    assert json.loads(text)["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/completions/"])
def test_any_model_and_one_slash_more(server: RunningServer, path: str) -> None:
    status, answer, _ = send(server, {"prompt": "Hi", "model": "gpt-4o", "max_tokens": 2}, path)
    assert (status, answer["model"]) == (200, "tiny")


@pytest.mark.parametrize(
    ("path", "allowed"), [("/v1/completions", {"POST"}), ("/health", {"GET", "HEAD"})]
)
def test_a_method_that_is_not_there_names_the_one_that_is(
    server: RunningServer, path: str, allowed: set[str]
) -> None:
    connection = connect(server)
    connection.request("DELETE", path)
    response = connection.getresponse()
    assert response.status == 405
    assert set((response.getheader("Allow") or "").split(", ")) == allowed
    assert "error" in json.loads(response.read())
    connection.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health", 200),
        ("/health/", 200),
        ("/v1/models", 200),
        ("/v1/models/tiny", 200),
        ("/v1/models/other", 404),
        ("/metrics", 200),
        ("/v1/completions", 405),
        ("/nothing", 404),
    ],
)
def test_head_is_answered_where_get_is(server: RunningServer, path: str, status: int) -> None:
    connection = connect(server)
    for method in ("HEAD", "GET"):  # on one connection: a body left behind would be the next answer
        connection.request(method, path)
        response = connection.getresponse()
        assert response.status == status
        assert int(response.getheader("Content-Length") or 0) > 0
        assert bool(response.read()) == (method == "GET")
    connection.close()


def raw(server: RunningServer, data: bytes, *, more: bytes = b"") -> tuple[bytes, int]:
    """All that comes back of a connection until the server ends it, and how often `more`, sent
    again and again meanwhile, was taken."""
    parts = urlsplit(server.address)
    found, taken = b"", 0
    with socket.create_connection((parts.hostname or "", parts.port or 0), PATIENCE) as connection:
        connection.sendall(data)
        connection.settimeout(0.01 if more else PATIENCE)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if more:
                    connection.sendall(more)
                    taken += 1
                piece = connection.recv(65536)
                if not piece:
                    if not more:
                        return found, taken
                    time.sleep(0.01)
                found += piece
            except TimeoutError:
                continue
            except OSError:
                return found, taken
    pytest.fail("the server did not end the connection")


MALFORMED = {
    "no request": b"hello\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
    b"Content-Length: 2\r\n\r\n",
    "a long head": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
    "a bad chunk": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_http_is_answered_in_json_and_not_logged(
    server: RunningServer, name: str
) -> None:
    said = len(server.said)
    answer, _ = raw(server, MALFORMED[name])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    assert "no valid HTTP/1.1 request" in json.loads(body)["error"]["message"]
    assert get(server, "/health")[0] == 200
    assert len(server.said) == said


def test_a_websocket_is_refused_without_advice(server: RunningServer) -> None:
    said = len(server.said)
    head = b"GET /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\n"
    head += b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n"
    answer, _ = raw(server, head)
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert len(server.said) == said


def test_a_body_with_two_ends_closes_the_connection(server: RunningServer) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer, _ = raw(server, head + smuggled)
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1 ") == 1


def test_a_coded_body_is_refused(server: RunningServer) -> None:
    status, answer, _ = send(server, LONG, **{"Content-Encoding": "gzip"})
    assert (status, answer["error"]["message"]) == (
        415,
        "the body is coded as gzip; send it as it is",
    )
    assert send(server, {**LONG, "max_tokens": 1}, **{"Content-Encoding": "identity"})[0] == 200


def test_http_1_0_without_a_host(server: RunningServer) -> None:
    answer, _ = raw(server, b"GET /v1/models HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/completions", 413), ("/v1/nothing", 404), ("/health", 405)]
)
def test_a_refused_body_is_not_read_for_ever(server: RunningServer, path: str, status: int) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunk = b"%x\r\n" % 1_000_000 + b" " * 1_000_000 + b"\r\n"
    started = time.monotonic()
    answer, taken = raw(server, head.encode() + b"Transfer-Encoding: chunked\r\n\r\n", more=chunk)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in answer.lower()
    assert taken < 200
    assert time.monotonic() - started < PATIENCE / 2


def test_health_and_metrics(server: RunningServer) -> None:
    status, text = get(server, "/health")
    assert (status, json.loads(text)["status"]) == (200, "ok")
    before = metrics(server)
    assert send(server, {**LONG, "max_tokens": 5, "stop": None})[0] == 200
    after = metrics(server)

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert more("awq_edge_generated_tokens_total") == 5
    assert more("awq_edge_time_to_first_token_seconds_count") == 1
    assert more("awq_edge_time_per_output_token_seconds_count") == 4
    assert more('awq_edge_requests_total{endpoint="/v1/completions",status="200"}') == 1
    assert after['awq_edge_memory_bytes{part="resident"}'] > 10_000_000
    assert after['awq_edge_memory_bytes{part="kv_cache"}'] > 0


class Busy:
    """A stream that is being answered, for as long as it is not closed."""

    def __init__(self, server: RunningServer) -> None:
        self.connection = connect(server)
        body = json.dumps({**LONG, "stream": True, "response_format": SCHEMA})
        self.connection.request(
            "POST", "/v1/completions", body, {"Content-Type": "application/json"}
        )
        self.response = self.connection.getresponse()
        assert self.response.status == 200


def test_clients_that_go_away_are_cancelled_and_a_full_queue_refuses(
    start_server: StartServer, tiny_chat_bundle: Path
) -> None:
    server = start_server(tiny_chat_bundle, "--model-name", "tiny", "--max-queue", "2", kind="slow")
    running = Busy(server)
    waiting = [Busy(server), Busy(server)]
    eventually(lambda: jobs(server)["queued"] == 2)
    status, answer, headers = send(server, LONG)
    assert status == 429
    assert answer["error"]["code"] == "queue_full"
    assert 1 <= int(headers["retry-after"]) <= 60
    waiting[0].response.close()
    waiting[0].connection.close()  # a stream that waits
    eventually(lambda: jobs(server)["queued"] == 1)
    whole = connect(server)  # one that does not stream, and waits
    whole.request("POST", "/v1/completions", json.dumps(LONG), {"Content-Type": "application/json"})
    eventually(lambda: jobs(server)["queued"] == 2)
    whole.close()
    eventually(lambda: jobs(server)["queued"] == 1)
    running.response.close()
    running.connection.close()  # the one that runs
    eventually(lambda: jobs(server)["cancelled"] == 3)
    waiting[1].response.close()
    waiting[1].connection.close()
    eventually(lambda: jobs(server)["cancelled"] == 4)
    counts = jobs(server)
    assert (counts["submitted"], counts["refused"], counts["completed"]) == (4, 1, 0)
    eventually(
        lambda: (
            metrics(server)['awq_edge_requests_total{endpoint="/v1/completions",status="499"}'] == 4
        )
    )
    assert get(server, "/health")[0] == 200
    assert server.end() == 0


def test_sigterm_finishes_what_runs_and_refuses_what_comes(
    start_server: StartServer, tiny_chat_bundle: Path
) -> None:
    server = start_server(tiny_chat_bundle, "--model-name", "tiny", kind="slow")
    running = Busy(server)
    running.response.readline()
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: any("shutting down" in line for line in server.said))
    status, answer, headers = send(server, LONG)
    assert (status, answer["error"]["code"]) == (503, "shutting_down")
    assert "retry-after" in headers
    assert get(server, "/health")[0] == 503
    rest = running.response.read().decode()
    assert rest.rstrip().endswith("data: [DONE]")
    assert server.process.wait(PATIENCE) == 0
    assert not any("Traceback" in line for line in server.said)


def test_a_second_signal_says_so(start_server: StartServer, tiny_chat_bundle: Path) -> None:
    server = start_server(tiny_chat_bundle, "--model-name", "tiny", kind="slow")
    running = Busy(server)
    running.response.readline()
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: any("shutting down" in line for line in server.said))
    server.end()
    eventually(lambda: any("second signal: 1 requests" in line for line in server.said))
    assert not any("time is up" in line for line in server.said)


def test_at_the_time_limit_the_rest_is_told(
    start_server: StartServer, tiny_chat_bundle: Path
) -> None:
    arguments = ("--model-name", "tiny", "--shutdown-timeout", "0")
    server = start_server(tiny_chat_bundle, *arguments, kind="slow")
    running, waiting = Busy(server), Busy(server)
    running.response.readline()
    assert server.end(signal.SIGINT) == 0
    for stream in (running, waiting):
        last = stream.response.read().decode().rstrip().splitlines()[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert any("2 requests end unanswered" in line for line in server.said)


def test_open_to_others_without_a_key_it_warns(
    start_server: StartServer, tiny_chat_bundle: Path
) -> None:
    server = start_server(tiny_chat_bundle, "--host", "0.0.0.0")
    assert "warning: http://0.0.0.0:" in server.said[0]
    assert "no --api-key is set" in server.said[0]
    server.end()
