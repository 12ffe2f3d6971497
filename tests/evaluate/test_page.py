"""docs/evaluate.md describes the JSON that is written."""

from __future__ import annotations

import re
from pathlib import Path

from awq_edge.evaluate.report import PerplexityReport
from awq_edge.validation import dotted_keys

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluate.md"


def test_the_page_describes_every_key_and_no_other() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n## JSON\n")[2]
    described = re.findall(r"^\| `([a-z_0-9.]+)` \| .*\S.* \|$", section, re.MULTILINE)
    assert len(set(described)) == len(described)
    assert set(described) == set(dotted_keys(PerplexityReport))
