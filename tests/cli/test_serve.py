"""`awq-edge serve` where it does not come to serving."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from .conftest import Command

pytest.importorskip("fastapi", reason="needs the [serve] extra")


def test_a_port_in_use_is_one_line(awq_edge_command: Command, tiny_chat_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = awq_edge_command("serve", tiny_chat_bundle, "--port", port)
    assert f"port {port} of 127.0.0.1 is in use" in outcome.refused()


def test_an_empty_key_in_the_environment_is_not_no_key(
    awq_edge_command: Command, tiny_chat_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWQ_EDGE_API_KEY", "")
    outcome = awq_edge_command("serve", tiny_chat_bundle, "--port", 0)
    assert "AWQ_EDGE_API_KEY is empty" in outcome.refused()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere"),
        (("BUNDLE", "--port", "99999"), "--port 99999: must be"),
        (("BUNDLE", "--host", "no.such.host.invalid"), "is no address of this machine"),
        (("BUNDLE", "--host", "192.0.2.1"), "is no address of this machine"),
        (("BUNDLE", "--shutdown-timeout", "nan"), "--shutdown-timeout nan: must be 0 or more"),
        (("BUNDLE", "--max-queue", "-1"), "--max-queue -1: must be 0 or more"),
        (("BUNDLE", "--api-key", ""), "is empty or not ASCII"),
        (("BUNDLE", "--api-key", "kéy"), "is empty or not ASCII"),
        (("BUNDLE", "--api-key", " key"), "has blanks around it"),
        (("BUNDLE", "--context", "999"), "--context 999 is beyond"),
    ],
)
def test_refusals(
    awq_edge_command: Command,
    tiny_chat_bundle: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    names = [str(tiny_chat_bundle) if a == "BUNDLE" else a for a in arguments]
    port = () if "--port" in names else ("--port", "0")
    assert message in awq_edge_command("serve", *names, *port).refused()
