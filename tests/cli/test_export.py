"""`awq-edge export` for TensorRT: the choice of nodes, and what the command says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_edge.artifacts.directories import Bundle

from .conftest import Command

RTX = ("--recipe", "rtx-4070-laptop-8gb", "--method", "rtn", "--context", 64)
NATIVE = ("--linear", "native", "--attention", "native")


def test_linear_and_attention(awq_edge_command: Command, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = awq_edge_command("export", "demo", "--out", out, *RTX, *NATIVE, "--scheme", "symmetric")
    assert done.code == 0, done.err
    assert "graph: opset 24, linears native, attention native\n" in done.out
    manifest = Bundle.open(out).manifest
    assert (manifest.linear, manifest.attention, manifest.plugin) == ("native", "native", None)


@pytest.mark.parametrize(("recipe", "verb"), [("cpu", "run"), ("rtx-4060-laptop-8gb", "build")])
def test_the_next_command_can_be_pasted(
    recipe: str, verb: str, awq_edge_command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "my bundle"
    outcome = awq_edge_command(
        "export", "demo", "--recipe", recipe, "--method", "rtn", "--out", out
    )
    assert outcome.code == 0, outcome.err
    assert f"next: awq-edge {verb} '{out}'" in outcome.out.splitlines()


def test_what_native_linears_refuse(awq_edge_command: Command, tmp_path: Path) -> None:
    """In one line, before the model is quantized."""
    out = tmp_path / "bundle"
    line = awq_edge_command("export", "demo", "--out", out, *RTX, *NATIVE).refused()
    assert line.endswith("have no zero points; give --scheme symmetric")
    line = awq_edge_command("export", "demo", "--out", out, *NATIVE).refused()
    assert "--linear native is for the runtimes tensorrt and tensorrt-rtx" in line
    line = awq_edge_command("export", "demo", "--out", out, *RTX, "--linear", "fused").refused()
    assert "--linear fused: allowed values: 'plugin' or 'native'" in line
    assert not list(tmp_path.iterdir())
