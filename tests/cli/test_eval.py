"""`awq-edge eval perplexity`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import TEXT

from awq_edge.evaluate.report import PerplexityReport

from .conftest import Command

SMALL = ("--window", "64", "--stride", "32", "--max-tokens", "150")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_table_and_json_file(
    awq_edge_command: Command, tiny_bundle: Path, text: Path, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    command = ("eval", "perplexity", tiny_bundle, "--text", text, *SMALL)
    outcome = awq_edge_command(*command, "--json", path)
    assert (outcome.code, outcome.err) == (0, "")
    report = PerplexityReport.model_validate_json(path.read_text())
    assert f"perplexity {report.perplexity:.4f}" in outcome.out
    assert "window 64, stride 32" in outcome.out and "149 tokens" in outcome.out
    assert (report.window, report.stride, report.tokens) == (64, 32, 149)


def test_json_alone_on_standard_output(
    awq_edge_command: Command, tiny_bundle: Path, text: Path
) -> None:
    outcome = awq_edge_command(
        "eval", "perplexity", tiny_bundle, "--text", text, *SMALL, "--json", "-"
    )
    assert outcome.code == 0
    assert json.loads(outcome.out)["perplexity"] > 1
    assert "perplexity" in outcome.err


def test_a_model_without_quantization(
    awq_edge_command: Command, tiny_llama: Path, tiny_bundle: Path, text: Path
) -> None:
    """transformers prints bars and warnings of its own; none of them is seen."""
    found = []
    for target in (tiny_llama, tiny_bundle):
        outcome = awq_edge_command(
            "eval", "perplexity", target, "--text", text, *SMALL, "--json", "-"
        )
        assert len(outcome.err.splitlines()) == 3
        found.append(json.loads(outcome.out)["perplexity"])
    # Float32 on both sides; 0.1 % is what the project promises.
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--text", "missing.txt"), "--text missing.txt: cannot be read"),
        (("--text", "text.txt", "--window", "999"), "--window 999 is beyond the context of 256"),
        (("--text", "text.txt", "--window", "1"), "--window 1: must be 2 or more"),
        (("--text", "text.txt", "--stride", "0"), "--stride 0"),
        (("--text", "text.txt", "--device", "cuda"), "a bundle runs as it was exported"),
        (("--text", "text.txt", "--json", "none/x.json"), "--json none/x.json: cannot be written"),
    ],
)
def test_refusals(
    awq_edge_command: Command,
    tiny_bundle: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(text.parent)
    assert message in awq_edge_command("eval", "perplexity", tiny_bundle, *flags).refused()
    assert list(text.parent.iterdir()) == [text]


def test_a_target_that_is_nothing(awq_edge_command: Command, text: Path, tmp_path: Path) -> None:
    outcome = awq_edge_command("eval", "perplexity", tmp_path / "none", "--text", text)
    assert "does not exist" in outcome.refused()
