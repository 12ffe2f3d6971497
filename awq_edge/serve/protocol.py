"""HTTP/1 on one connection: uvicorn's, with an end to what a client may send and JSON for faults.

uvicorn answers malformed HTTP with a text, logs each such request, and goes on reading a body that
was refused for as long as the client sends. Here, an answer that ends a connection is followed by
a short time in which what comes is thrown away (a client that still sends would else get a reset
instead of the answer), and a request whose head does not come is given up.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from awq_edge.serve.api_error import ApiError

# For a client to take the answer that ends its connection, and what it may send meanwhile.
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 64_000_000
HEAD_SECONDS = 30.0

_log = logging.getLogger(__name__)
# uvicorn warns of every malformed request; a defect is an error, and is said.
_log.setLevel(logging.ERROR)


class Http1Protocol(H11Protocol):
    """One connection."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.logger = _log
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._lingering = _Lingering(transport, self.loop)
        self.transport = cast(asyncio.Transport, self._lingering)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._lingering.is_closing():
            self._lingering.discard(len(data))
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()

    def eof_received(self) -> None:
        self._lingering.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._lingering.end()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._await_head()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP, where an answer can still be sent, and end the connection."""
        error = sys.exc_info()[1]
        hint = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._refuse(ApiError(hint, f"this is no valid HTTP/1.1 request: {error or msg}"))

    def shutdown(self) -> None:
        """Close an idle connection at once, an active one after its answer."""
        super().shutdown()
        if self._lingering.is_closing():
            self._lingering.end()

    def _refuse(self, error: ApiError) -> None:
        if self.cycle is not None:  # a body that went wrong: nobody takes the answer to its head
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body()).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            reason = STATUS_PHRASES.get(error.status, b"")
            for event in (
                h11.Response(status_code=error.status, headers=headers, reason=reason),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _await_head(self) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            if self.conn.trailing_data[0]:
                text = f"the head of the request did not come within {HEAD_SECONDS:g} s"
                self._refuse(ApiError(408, text))
            else:
                self.transport.close()


class _Lingering:
    """A transport whose `close` lets the client read the answer before the connection is cut
    off."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._left = _LINGER_BYTES
        self._timer: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._timer is not None or self._transport.is_closing()

    def close(self) -> None:
        """Send the end of the stream; cut off when the client does too, or after a while."""
        if self.is_closing():
            return
        self._timer = self._loop.call_later(_LINGER_SECONDS, self.end)
        try:
            if self._transport.can_write_eof():
                self._transport.write_eof()
        except OSError:  # the client cut the connection before its loss was told here
            self.end()
            return
        self._transport.resume_reading()

    def discard(self, size: int) -> None:
        """Count bytes that came after `close`; too many of them end the connection."""
        self._left -= size
        if self._left < 0:
            self.end()

    def end(self) -> None:
        """Close without waiting."""
        if self._timer is not None:
            self._timer.cancel()
        self._transport.close()
