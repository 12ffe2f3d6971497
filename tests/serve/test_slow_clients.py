"""Clients that send a byte at a time."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from urllib.parse import urlsplit

from .conftest import StartServer
from .test_http import LONG, send


def test_clients_that_take_their_time_are_given_up(
    start_server: StartServer, tiny_chat_bundle: Path
) -> None:
    """Byte by byte, a head or a body would hold its connection for ever."""
    server = start_server(tiny_chat_bundle, "--model-name", "tiny", kind="hasty")
    parts = urlsplit(server.address)
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
    )

    def drip(at_once: bytes, one_by_one: bytes) -> bytes:
        answer = b""
        with socket.create_connection((parts.hostname, parts.port), timeout=0.05) as client:
            client.sendall(at_once)
            for byte in one_by_one:
                with contextlib.suppress(TimeoutError):
                    part = client.recv(65536)
                    answer += part
                    if not part:
                        return answer
                with contextlib.suppress(OSError):  # it has closed its side
                    client.sendall(bytes([byte]))
        raise AssertionError(f"the connection stays open: {answer!r}")

    for at_once, rest, said in (
        (b"", head + b" " * 200, b"the head of the request did not come within 0.5 s"),
        (head, b" " * 400, b"the body did not come within 0.5 s"),
    ):
        answer = drip(at_once, rest)
        assert answer.startswith(b"HTTP/1.1 408 ") and said in answer
        assert b"connection: close" in answer.lower()
    status, body, _ = send(server, LONG | {"max_tokens": 2})
    assert status == 200 and body["usage"]["completion_tokens"] == 2
    assert server.end() == 0
