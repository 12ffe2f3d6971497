"""`awq-edge quantize --eval-text`: perplexities in the report, on its page and in the terminal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import awq_edge
from awq_edge.errors import ConfigError
from awq_edge.evaluate.report import evaluate_perplexity
from awq_edge.quantizer.report.schema import QuantizationReport
from tests.tiny_models import TEXT

from .conftest import Command

FLAGS = ("--method", "rtn", "--group-size", "32")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_both_perplexities_are_in_the_report(
    awq_edge_command: Command, tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "checkpoint", tmp_path / "other.txt"
    other.write_text("There was an old man who sold boats. " * 9)
    outcome = awq_edge_command(
        *("quantize", tiny_llama, "--out", out, *FLAGS),
        *("--eval-text", text, "--eval-text", other, "--json", tmp_path / "report.json"),
    )
    assert outcome.code == 0, outcome.err
    report = QuantizationReport.model_validate_json((out / "quantization_report.json").read_bytes())
    assert [row.text for row in report.perplexities] == [str(text), str(other)]
    for row, path in zip(report.perplexities, (text, other), strict=True):
        assert row.original == evaluate_perplexity(tiny_llama, path).perplexity
        assert row.quantized == evaluate_perplexity(out, path).perplexity
        assert row.original != row.quantized
        assert f"perplexity of {path}: {row.quantized:.4f}, unquantized" in outcome.out
    page = (out / "quantization_report.html").read_text(encoding="utf-8")
    assert f"<td>{report.perplexities[0].quantized:.4f}</td>" in page
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(
        report.model_dump_json()
    )


def test_a_report_from_before_there_were_perplexities_is_read(
    tiny_llama: Path, tmp_path: Path
) -> None:
    """The schema version is the same: keys that came later are optional."""
    report = awq_edge.quantize(
        tiny_llama, tmp_path / "out", awq_edge.load_recipe(method="rtn", group_size=32)
    ).report
    data = json.loads(report.model_dump_json())
    assert data.pop("perplexities") == []
    for block in data["blocks"]:
        for linear in block["linears"]:
            del linear["group"]
    assert QuantizationReport.model_validate(data) == report


def test_a_text_that_cannot_be_read_stops_before_the_work(
    awq_edge_command: Command, tiny_llama: Path, tmp_path: Path
) -> None:
    command = ("quantize", tiny_llama, "--out", tmp_path / "out", *FLAGS)
    outcome = awq_edge_command(*command, "--eval-text", tmp_path / "none.txt")
    assert f"--eval-text {tmp_path / 'none.txt'} does not exist" in outcome.refused()
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_that_fails_leaves_a_whole_checkpoint(
    tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    """A text of a single token: that is known when the model is loaded."""
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": False}))
    text.write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"out is complete, but not evaluated: the text has 1"):
        awq_edge.quantize(
            model,
            tmp_path / "out",
            awq_edge.load_recipe(method="rtn", group_size=32),
            eval_texts=[text],
        )
    report = (tmp_path / "out" / "quantization_report.json").read_bytes()
    assert QuantizationReport.model_validate_json(report).perplexities == ()
