"""scripts/load_test_server.py, for a few seconds: nothing is lost, and the counts add up."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "load_test_server.py"

pytest.importorskip("fastapi", reason="needs the [serve] extra")


def test_sixty_four_clients_for_some_seconds(tiny_chat_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "load.json"
    command = [sys.executable, str(SCRIPT), str(tiny_chat_bundle), "--seconds", "4"]
    result = subprocess.run(
        [*command, "--clients", "64", "--max-queue", "32", "--json", str(out)],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(out.read_text())
    assert report["faults"] == []
    assert report["lost"] == 0
    answered = report["answered_by_status"]
    assert {"200", "400"} <= set(answered)
    assert report["server_jobs"]["cancelled"] > 0
    assert report["server_jobs"]["completed"] >= answered["200"]
    assert report["requests_sent"] == sum(report["server_requests_by_status"].values())


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        yield _loaded()


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("load_test_server", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def found(**changed: float) -> dict[str, float]:
    jobs = {"submitted": 5, "refused": 0, "completed": 4, "cancelled": 1, "failed": 0, **changed}
    prefix = 'awq_edge_requests_total{endpoint="/v1/completions",status='
    counts = {f'awq_edge_jobs_total{{state="{name}"}}': float(n) for name, n in jobs.items()}
    return counts | {f'{prefix}"200"}}': 4.0, f'{prefix}"499"}}': 1.0}


def test_its_accounting_finds_what_does_not_add_up(script: ModuleType) -> None:
    tally = script.Tally(statuses=Counter({200: 4}), given_up=Counter({"stream": 1}))
    assert script.account(tally, found(), 0.01) == []
    assert "jobs do not add up" in script.account(tally, found(completed=3), 0.01)[0]
    assert "1 jobs failed" in script.account(tally, found(completed=3, failed=1), 0.01)[0]
    assert "memory grew by 9.0%" in script.account(tally, found(), 0.09)[0]
    fewer = script.Tally(statuses=Counter({200: 3}), given_up=Counter({"stream": 1}))
    assert "clients sent 4 requests" in script.account(fewer, found(), None)[0]
    other = script.Tally(statuses=Counter({200: 4, 429: 1}))
    assert "429: 0 counted, 1 received" in script.account(other, found(), None)[0]
    lost = script.Tally(statuses=Counter({200: 4}), lost=["a request"])
    assert script.account(lost, found(), None) == ["lost: a request"]
