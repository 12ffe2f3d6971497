"""Limits of one request, one client and all of them together."""

from __future__ import annotations

from dataclasses import dataclass

from awq_edge.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """The server's limits."""

    max_queue: int = 64  # requests that wait for the running one, see `Scheduler`
    max_new_tokens: int | None = None  # of one answer; None: the context is the limit
    max_body: int = 1_000_000  # bytes of a request
    body_seconds: float = 30.0  # for a request to arrive
    send_seconds: float = 60.0  # for a client to take a part of a stream
    shutdown_seconds: float = 30.0  # for accepted requests to finish
    spare_connections: int = 64  # beyond those that wait

    @property
    def max_connections(self) -> int:
        """More connections than can wait and run, so that a full queue answers, not the socket."""
        return 2 * self.max_queue + self.spare_connections

    def __post_init__(self) -> None:
        """Raises ConfigError naming the flag that is out of range."""
        ranges = (
            ("--max-queue", self.max_queue, 0),
            ("--max-new-tokens", self.max_new_tokens, 1),
            ("--max-body-bytes", self.max_body, 1),
            ("--shutdown-timeout", self.shutdown_seconds, 0),
        )
        for flag, value, least in ranges:
            if value is not None and not value >= least:  # nan is neither
                raise ConfigError(f"{flag} {value}: must be {least} or more")
