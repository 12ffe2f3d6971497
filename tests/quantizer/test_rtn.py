"""Round-to-nearest needs no sums over inputs: its bytes are the same on every machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import awq_edge
from awq_edge.recipe.recipes import load_recipe

# Of the demo model in groups of 32. Codes of the other methods depend on the CPU's sums:
# scripts/compare_checkpoints.py compares two commits on one machine.
SHA256 = "5a8cf8cca7e31b2c14c0b730b9f0127051a1cd5e1336562cbc5c435f2df70393"


def test_the_demo_models_bytes(tmp_path: Path) -> None:
    out = awq_edge.quantize("demo", tmp_path / "out", load_recipe(method="rtn", group_size=32)).path
    assert hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest() == SHA256
