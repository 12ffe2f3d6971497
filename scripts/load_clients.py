"""The clients of load_test_server.py: what they send, how they leave, and what they saw."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

MODEL = "load"
MAX_BODY = 50_000
TIMEOUT = 150.0  # seconds after which a request counts as lost
SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["age"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "age", "schema": SCHEMA}}
WRONG_REQUESTS = (b'{"model": "load"}', b'{"model": "load", "prompt": "a", "n": 3}')
BEGINNINGS = ("The people of the United States", "My lord, I have", "It is a truth that", "We")


@dataclass
class Tally:
    """What the clients saw. statuses: of requests answered in full. given_up: by the client."""

    statuses: Counter[int] = field(default_factory=Counter)
    given_up: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    latencies: dict[str, list[float]] = field(default_factory=dict)
    ttfts: list[float] = field(default_factory=list)
    generated_tokens: int = 0
    cached_tokens: int = 0

    @property
    def sent(self) -> int:
        return self.statuses.total() + self.given_up.total() + len(self.lost)


class Client:
    """One of many: a request at a time, each over a connection of its own."""

    def __init__(self, number: int, port: int, tally: Tally, crowd: bool) -> None:
        self._random = random.Random(number)
        self._port = port
        self._tally = tally
        self._kind = "crowd" if crowd else "others"
        self._address = "127.0.0.2" if crowd else f"127.0.0.{3 + number // 2}"
        self._actions: tuple[tuple[int, Callable[[], Awaitable[None]]], ...] = (
            (8, self._whole),
            (8, self._streamed),
            (3, self._schema),
            (3, self._leave_stream),
            (3, self._leave_queue),
            (1, self._leave_body),
            (3, self._malformed),
            (1, self._too_long),
        )

    async def run(self, end: float) -> None:
        weights = [weight for weight, _ in self._actions]
        while time.monotonic() < end:
            (chosen,) = self._random.choices(self._actions, weights)
            try:
                await asyncio.wait_for(chosen[1](), TIMEOUT)
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError) as e:
                self._tally.lost.append(f"{chosen[1].__name__}: {type(e).__name__} {e}")

    async def _whole(self) -> None:
        status, body, _ = await self._ask(self._request(logprobs=2))
        if status == 200:
            self._count(json.loads(body))

    async def _schema(self) -> None:
        status, body, _ = await self._ask(self._request(response_format=FORMAT, max_tokens=40))
        if status == 200:
            answer = json.loads(body)
            self._count(answer)
            text = answer["choices"][0]["text"]
            if not isinstance(json.loads(text).get("age"), int):
                self._tally.wrong.append(f"not of the schema: {text!r}")

    async def _streamed(self) -> None:
        request = self._request(stream=True, stream_options={"include_usage": True})
        status, body, ttft = await self._ask(request)
        if status != 200:
            return
        events = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
        if events[-1] != "[DONE]":
            self._tally.wrong.append(f"a stream ends with {events[-1][:200]}")
            return
        self._count(json.loads(events[-2]))
        self._tally.ttfts.append(ttft)

    async def _leave_stream(self) -> None:
        """After the first words, or before them."""
        reader, writer = await self._send(self._request(stream=True, max_tokens=300))
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.splitlines()[0]:
            await self._answered(reader, head)
        else:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(reader.readline(), self._random.random())
            self._tally.given_up["stream"] += 1
        await self._close(writer)

    async def _leave_queue(self) -> None:
        """At any moment: most are waiting then."""
        reader, writer = await self._send(self._request(max_tokens=200))
        try:
            head = await asyncio.wait_for(
                reader.readuntil(b"\r\n\r\n"), self._random.random() * 0.5
            )
        except asyncio.TimeoutError:
            self._tally.given_up["whole"] += 1
        else:
            await self._answered(reader, head)
        await self._close(writer)

    async def _leave_body(self) -> None:
        raw = self._raw(self._request(prompt="word " * 1000))
        _, writer = await self._open()
        writer.write(raw[: len(raw) // 2])
        await writer.drain()
        self._tally.given_up["body"] += 1
        await self._close(writer)

    async def _malformed(self) -> None:
        body = self._random.choice(
            (b"", b"{", b"\xff\xfe", b"[]", b'{"model": NaN}', b"[" * 20_000, *WRONG_REQUESTS)
        )
        status, answer, _ = await self._ask(body)
        if status != 400 or "message" not in json.loads(answer)["error"]:
            self._tally.wrong.append(f"{body[:50]!r} was answered with {status} {answer[:200]!r}")

    async def _too_long(self) -> None:
        status, _, _ = await self._ask(b" " * (MAX_BODY + 1))
        if status != 413:
            self._tally.wrong.append(f"a body of {MAX_BODY + 1} bytes was answered with {status}")

    def _request(self, **extra: object) -> bytes:
        request: dict[str, object] = {
            "model": MODEL,
            "prompt": self._random.choice(BEGINNINGS) + " and" * self._random.randrange(60),
            "max_tokens": self._random.randrange(1, 48),
            "temperature": self._random.choice((0, 0.8)),
        }
        return json.dumps({**request, **extra}).encode()

    def _raw(self, body: bytes) -> bytes:
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        source = (self._address, 0) if sys.platform == "linux" else None
        return await asyncio.open_connection("127.0.0.1", self._port, local_addr=source)

    async def _send(self, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self._open()
        writer.write(self._raw(body))
        await writer.drain()
        return reader, writer

    async def _ask(self, body: bytes) -> tuple[int, bytes, float]:
        """Status, body and seconds to the first event of a whole answer."""
        started = time.monotonic()
        reader, writer = await self._send(body)
        head = await reader.readuntil(b"\r\n\r\n")
        first = await reader.readline() if b"chunked" in head else b""
        if first:
            first += await reader.readline()
        ttft = time.monotonic() - started
        status, rest = await self._answered(reader, head, first)
        await self._close(writer)
        if status == 200:
            self._tally.latencies.setdefault(self._kind, []).append(time.monotonic() - started)
        if status == 429:
            await asyncio.sleep(self._random.random())
        return status, rest, ttft

    async def _answered(
        self, reader: asyncio.StreamReader, head: bytes, first: bytes = b""
    ) -> tuple[int, bytes]:
        """The rest of an answer. Raises IncompleteReadError where it is not whole."""
        status = int(head.split()[1])
        body = first + await reader.read()
        if b"chunked" in head.lower():
            if not body.endswith(b"0\r\n\r\n"):
                raise asyncio.IncompleteReadError(body[-20:], None)
        else:
            lengths = [h for h in head.lower().splitlines() if h.startswith(b"content-length")]
            wanted = int(lengths[0].partition(b":")[2])
            if len(body) != wanted:
                raise asyncio.IncompleteReadError(body[-20:], wanted)
        self._tally.statuses[status] += 1
        return status, body

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()  # at once: a client that is gone does not say goodbye

    def _count(self, answer: dict[str, dict[str, int]]) -> None:
        usage = answer["usage"]
        self._tally.generated_tokens += usage["completion_tokens"]
        self._tally.cached_tokens += usage["prompt_tokens_details"]["cached_tokens"]  # type: ignore[index]
