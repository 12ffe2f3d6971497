"""docs/bench.md names every key of the report's own parts, and the rule's numbers."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel

from awq_edge.bench import report as bench_report
from awq_edge.bench.compare import ALPHA, MIN_CHANGE
from awq_edge.bench.plan import GENERATED_LENGTHS, PROMPT_LENGTHS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bench.md"


def test_every_key_is_described() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n## Keys of the JSON\n")[2]
    named = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`]+)`", section))))
    parts = [
        part
        for part in vars(bench_report).values()
        if isinstance(part, type)
        and issubclass(part, BaseModel)
        and part.__module__ == bench_report.__name__
    ]
    assert len(parts) > 8
    missing = {field for part in parts for field in part.model_fields} - named
    assert missing == set()


def test_defaults_are_as_described() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"{', '.join(map(str, PROMPT_LENGTHS))}, as far as they fit" in text
    assert f"| {GENERATED_LENGTHS[0]}, if they fit |" in text
    assert (
        f"rejects at {ALPHA:g}" in text and f"differ by {MIN_CHANGE:.0%}".replace("%", " %") in text
    )
