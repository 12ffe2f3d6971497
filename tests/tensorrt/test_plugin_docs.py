"""docs/plugin.md has the contract's tables, word for word."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_edge.tensorrt.contract import OPS

from .contract_tables import tables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "plugin.md"


@pytest.mark.parametrize("name", OPS)
def test_the_page_has_the_tables_of_the_contract(name: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    section = page.partition(f"\n### {name}\n")[2].partition("\n### ")[0].partition("\n## ")[0]
    expected = tables(OPS[name])
    wanted = {line for line in expected if line.startswith("| `")}
    found = {line for line in section.splitlines() if line.startswith("| `")}
    assert found == wanted, "python -m tests.tensorrt.contract_tables prints the tables"
    assert "\n".join(expected) in section
