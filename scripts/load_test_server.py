"""Put `awq-edge serve` under load and account for every request.

python scripts/load_test_server.py BUNDLE [--seconds 60] [--clients 64] [--json FILE]

Clients ask for completions, whole, streamed and of a JSON schema; some go away in the middle, some
send what is no request. Half of them share one address, the others have one for every two. The
script fails where a request is neither answered nor given up by its client, where the server's
counts and the clients' differ, or where memory grows.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from awq_edge.device.cpu import describe_cpu
from awq_edge.provenance import source_commit, versions

MODEL = "load"
MAX_BODY = 50_000
TIMEOUT = 150.0  # seconds after which a request counts as lost
PACKAGES = ("fastapi", "uvicorn", "sse-starlette", "llguidance", "onnxruntime")
# Growth of memory between the second quarter of the time and the last, of which caches and the
# allocator may take a little.
MOST_GROWTH = 0.03
SHORTEST_FOR_GROWTH = 20.0  # seconds: in less, the second quarter is still warm-up
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


class Server:
    """`awq-edge serve` in a process of its own."""

    def __init__(self, bundle: str, queue: int) -> None:
        code = "from awq_edge.cli import main; main()"
        command = [sys.executable, "-c", code, "serve", bundle, "--port", "0"]
        command += ["--model-name", MODEL, "--max-queue", str(queue)]
        command += ["--max-body-bytes", str(MAX_BODY)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if " at http://" in line:
                self.port = int(line.split("/v1")[0].rpartition(":")[2])
                return
        sys.exit(f"error: the server did not start: {''.join(lines)}")

    def memory(self) -> int:
        """Bytes of anonymous memory; 0 where the system does not tell."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return 0
        (line,) = (row for row in status.splitlines() if row.startswith("RssAnon:"))
        return int(line.split()[1]) * 1024

    async def metrics(self) -> dict[str, float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        text = (await reader.read()).decode().partition("\r\n\r\n")[2]
        writer.close()
        rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in rows}

    def end(self) -> tuple[int, str]:
        """Exit code, and what it said since it started."""
        self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


async def load(
    server: Server, seconds: float, clients: int
) -> tuple[Tally, list[int], list[float]]:
    """Run the clients; their tally, the memory every tenth of a second, and the queue's lengths."""
    tally, memory, queue = Tally(), [], []
    end = time.monotonic() + seconds
    crowd = clients // 2
    running = [
        asyncio.create_task(Client(n, server.port, tally, crowd=n < crowd).run(end))
        for n in range(clients)
    ]
    while not all(task.done() for task in running):
        memory.append(server.memory())
        if len(memory) % 10 == 0:
            queue.append((await server.metrics())["awq_edge_queue_length"])
        await asyncio.sleep(0.1)
    for task in running:
        task.result()
    return tally, memory, queue


async def settled(server: Server) -> dict[str, float]:
    """The metrics once nothing is queued or running."""
    for _ in range(300):
        found = await server.metrics()
        if found["awq_edge_queue_length"] == found["awq_edge_running"] == 0:
            return found
        await asyncio.sleep(0.1)
    sys.exit("error: the server is still busy 30 s after the last client")


def account(tally: Tally, found: dict[str, float], growth: float | None) -> list[str]:
    """What does not add up, in words."""
    faults = [f"lost: {what}" for what in tally.lost] + tally.wrong
    jobs = {
        name: found[f'awq_edge_jobs_total{{state="{name}"}}']
        for name in ("submitted", "refused", "completed", "cancelled", "failed")
    }
    if jobs["submitted"] != jobs["completed"] + jobs["cancelled"] + jobs["failed"]:
        faults.append(f"jobs do not add up: {jobs}")
    if jobs["failed"]:
        faults.append(f"{jobs['failed']:.0f} jobs failed")
    served = statuses(found)
    if sum(served.values()) != tally.sent:
        faults.append(f"clients sent {tally.sent} requests, the server counts {served}")
    # Whoever was given up may have been answered a moment before: the server may count more of a
    # status than was received, never less, and the sum above has no room for anything else.
    for status, received in tally.statuses.items():
        if served[status] < received:
            faults.append(f"{status}: {served[status]} counted, {received} received")
    if growth is not None and growth > MOST_GROWTH:
        faults.append(f"memory grew by {growth:.1%}")
    return faults


def statuses(found: dict[str, float]) -> Counter[int]:
    """The server's count of completions by status."""
    prefix = 'awq_edge_requests_total{endpoint="/v1/completions",status="'
    return Counter(
        {
            int(name.removeprefix(prefix).partition('"')[0]): int(value)
            for name, value in found.items()
            if name.startswith(prefix)
        }
    )


def mean(found: dict[str, float], histogram: str) -> float | None:
    count = found[f"{histogram}_count"]
    return found[f"{histogram}_sum"] / count if count else None


def percentiles(values: list[float]) -> dict[str, float] | None:
    if len(values) < 2:
        return None
    cuts = statistics.quantiles(values, n=100)
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "count": len(values)}


def report(
    arguments: argparse.Namespace, tally: Tally, found: dict[str, float], **figures: object
) -> dict[str, object]:
    cpu = describe_cpu()
    return {
        "what": "awq-edge serve under load",
        "bundle": Path(arguments.bundle).name,
        "clients": arguments.clients,
        "seconds": arguments.seconds,
        "max_queue": arguments.max_queue,
        "requests_sent": tally.sent,
        "answered_by_status": dict(sorted(tally.statuses.items())),
        "given_up_by_client": dict(tally.given_up),
        "lost": len(tally.lost),
        "server_requests_by_status": dict(sorted(statuses(found).items())),
        "server_jobs": {
            name.split('"')[1]: int(value)
            for name, value in found.items()
            if name.startswith("awq_edge_jobs_total")
        },
        "generated_tokens": int(found["awq_edge_generated_tokens_total"]),
        "generated_tokens_received": tally.generated_tokens,
        "prompt_tokens": int(found["awq_edge_prompt_tokens_total"]),
        "reused_tokens": int(found["awq_edge_reused_tokens_total"]),
        "tpot_seconds_mean": mean(found, "awq_edge_time_per_output_token_seconds"),
        "ttft_seconds": percentiles(tally.ttfts),
        "latency_seconds": {kind: percentiles(v) for kind, v in sorted(tally.latencies.items())},
        **figures,
        "load_average_before": arguments.load_average,
        "machine": {"cpu": cpu.name, "cores": cpu.cores, "power_mode": cpu.power_mode},
        "versions": versions(PACKAGES),
        "commit": source_commit(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--max-queue", type=int, default=48)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    arguments.load_average = os.getloadavg()[0]
    server = Server(arguments.bundle, arguments.max_queue)
    try:
        tally, memory, queue = asyncio.run(load(server, arguments.seconds, arguments.clients))
        found = asyncio.run(settled(server))
    finally:
        code, said = server.end()
    quarter = max(1, len(memory) // 4)
    early = statistics.median(memory[quarter : 2 * quarter])
    late = statistics.median(memory[-quarter:])
    judged = arguments.seconds >= SHORTEST_FOR_GROWTH and early
    growth = late / early - 1 if judged else None
    faults = account(tally, found, growth)
    if code != 0 or "Traceback" in said:
        faults.append(f"the server ended with {code}: {said[-2000:]}")
    result = report(
        arguments,
        tally,
        found,
        anonymous_bytes={"second_quarter": early, "last_quarter": late, "growth": growth},
        longest_queue=max(queue, default=0),
        faults=faults,
    )
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    if faults:
        sys.exit("error: " + "; ".join(faults[:10]))


if __name__ == "__main__":
    main()
