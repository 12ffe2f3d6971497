"""The process: a socket, uvicorn, and the end of both.

First SIGTERM or SIGINT: new requests get 503, accepted ones go on up to a limit, then the process
ends with 0. Second one: it ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from awq_edge.errors import ConfigError
from awq_edge.serve.app import create_app
from awq_edge.serve.protocol import Http1Protocol
from awq_edge.serve.service import Service

_POLL_SECONDS = 0.05
# For responses to reach their clients, and for the worker to end a step, behind the limit.
_LAST_SECONDS = 5.0
_KEEP_ALIVE_SECONDS = 30
_BACKLOG = 128


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Clients that connect before the model is loaded wait for it.

    Raises ConfigError that says why the address cannot be used.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: must be from 0 (any that is free) to 65535")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"--host {host}: is no address of this machine: {error}") from None
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        # Two servers may bind one address with SO_REUSEADDR; only one may listen.
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(_binding_failed(host, port, error)) from None
    return sock


def _binding_failed(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; stop what uses it, or choose another --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs administrator's rights; choose a --port of 1024 or more"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host}: is no address of this machine; 0.0.0.0 stands for all it has"
    return f"cannot listen on {host} port {port}: {error.strerror}"


def is_loopback(sock: socket.socket) -> bool:
    """True if only programs of this machine can connect."""
    return ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback


def address(sock: socket.socket) -> str:
    """http://HOST:PORT of a bound socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(service: Service, sock: socket.socket, say: Callable[[str], None]) -> bool:
    """Answer requests until a signal ends the server; True if the worker has ended, so that the
    model may be closed.

    say: receives a line at each stage.
    """
    app = create_app(
        service,
        started=int(time.time()),
        connections=lambda: len(server.server_state.connections),
    )
    config = uvicorn.Config(
        app,
        http=Http1Protocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a header would let a client choose whose turn it takes
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(_LAST_SECONDS),
    )
    server = _Server(config, service, say)
    service.scheduler.start()
    try:
        server.run(sockets=[sock])
    finally:
        ended = service.scheduler.stop(_LAST_SECONDS)
    return ended


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, service: Service, say: Callable[[str], None]
    ) -> None:
        super().__init__(config)
        self._service = service
        self._say = say
        self._signals = 0
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        for sock in sockets or []:
            self._say(f"{self._service.model_name} at {address(sock)}/v1 (Ctrl-C ends)")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's handlers, without its raising the signal again after a graceful end."""
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1 or not self.started:
            self.should_exit = self.force_exit = True
        else:
            self._loop.call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        """Drain the queue while uvicorn goes on: it would close its socket, this answers with
        503."""
        try:
            scheduler, seconds = self._service.scheduler, self._service.limits.shutdown_seconds
            scheduler.close()
            state = scheduler.state()
            self._say(
                f"shutting down: {state.running} running and {state.queued} waiting requests have "
                f"{seconds:g} s to finish"
            )
            if not await self._idle(seconds):
                state = scheduler.state()
                why = "second signal" if self.force_exit else "time is up"
                self._say(f"{why}: {state.running + state.queued} requests end unanswered")
                scheduler.abandon()
                await self._idle(_LAST_SECONDS)
        finally:
            self.should_exit = True

    async def _idle(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self._service.scheduler.state().idle:
            if time.monotonic() >= end or self.force_exit:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True
