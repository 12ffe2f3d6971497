"""docs/inspect.md: every key of the report is described."""

from __future__ import annotations

import re
from pathlib import Path

from awq_edge.inspect.schema import Inspection
from awq_edge.recipe.validation import dotted_keys

PAGE = Path(__file__).resolve().parents[2] / "docs" / "inspect.md"


def test_the_page_describes_every_key_and_no_other() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n## Keys\n")[2]
    described = re.findall(r"^\| `([a-z0-9_.\[\]]+)` \| .*\S.* \|$", section, re.MULTILINE)
    assert len(set(described)) == len(described)
    keys = set(dotted_keys(Inspection))
    # Parts that may be missing are described by their keys.
    optional = ("architecture", "quantization", "bundle", "sampling")
    keys = {k.replace("[].", ".") if k.startswith(optional) else k for k in keys}
    keys -= {*optional, "parts", "dtypes", "files", "sampling.keys"}
    assert set(described) == keys
