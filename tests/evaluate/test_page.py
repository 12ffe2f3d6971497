"""docs/evaluate.md describes the JSON that is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from awq_edge.evaluate.divergence_report import DivergenceReport
from awq_edge.evaluate.report import PerplexityReport
from awq_edge.evaluate.tasks import TasksReport
from awq_edge.recipe.validation import dotted_keys

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluate.md"
REPORTS: dict[str, type[BaseModel]] = {
    "`eval perplexity`": PerplexityReport,
    "`eval divergence`": DivergenceReport,
    "`eval tasks`": TasksReport,
}


def described(of: str) -> set[str]:
    """The keys in the table of one section."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## JSON of {of}\n")[2]
    table = section.partition("\n## ")[0]
    keys = re.findall(r"^\| `([a-z_0-9.\[\]]+)` \| .*\|$", table, re.MULTILINE)
    assert len(set(keys)) == len(keys)
    return set(keys)


def written(report: type[BaseModel]) -> set[str]:
    """The keys of a report; `reference` stands for its own, which are those of `model`."""
    return {key if not key.startswith("reference.") else "reference" for key in dotted_keys(report)}


@pytest.mark.parametrize("command", REPORTS)
def test_the_page_describes_every_key_and_no_other(command: str) -> None:
    keys, shared = written(REPORTS[command]), described("all")
    assert described(command) == keys - shared


def test_the_shared_keys_are_written() -> None:
    assert described("all") <= set.union(*map(written, REPORTS.values()))
