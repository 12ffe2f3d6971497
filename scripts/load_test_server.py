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
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from load_clients import MAX_BODY, MODEL, Client, Tally

from awq_edge.artifacts.provenance import source_commit, versions
from awq_edge.device.cpu import describe_cpu
from awq_edge.process.children import child

PACKAGES = ("fastapi", "uvicorn", "sse-starlette", "llguidance", "onnxruntime")
# Growth of memory between the second quarter of the time and the last, of which caches and the
# allocator may take a little.
MOST_GROWTH = 0.03
SHORTEST_FOR_GROWTH = 20.0  # seconds: in less, the second quarter is still warm-up


class Server:
    """`awq-edge serve` in a process of its own."""

    def __init__(self, bundle: str, queue: int) -> None:
        code = "from awq_edge.cli import main; main()"
        command = [sys.executable, "-c", code, "serve", bundle, "--port", "0"]
        command += ["--model-name", MODEL, "--max-queue", str(queue)]
        command += ["--max-body-bytes", str(MAX_BODY)]
        self._end = contextlib.ExitStack()
        self.process = self._end.enter_context(child(command, stderr=subprocess.PIPE))
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
        self._end.close()
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
