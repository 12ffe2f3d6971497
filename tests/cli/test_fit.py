"""`awq-edge fit` and `awq-edge doctor` as they are typed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from awq_edge.doctor.report import DoctorReport
from awq_edge.fit.models import find_model
from awq_edge.fit.report import FitReport, FitTable
from awq_edge.recipe.validation import dotted_keys

from .conftest import Command

DOCS = Path(__file__).resolve().parents[2] / "docs"
LAPTOP = "rtx-4070-laptop-8gb"


def test_the_names_that_scripts_rely_on(awq_edge_command: Command) -> None:
    outcome = awq_edge_command(
        "fit", "Llama-2-13B", "--recipe", LAPTOP, "--bits", 4, "--context", 1024,
        "--kv-dtype", "float16", "--lm-head-bits", 4, "--json", "-",
    )  # fmt: skip
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found["verdict"] == "tight"
    assert set(found["predicted_bytes"]) >= {"weights", "kv_cache", "activations", "total"}
    assert 200 <= found["max_context"] < 1024
    assert found["roofline_tokens_per_s"]["empty"] > found["roofline_tokens_per_s"]["full"] > 0
    assert found["settings"]["lm_head_bits"] == 4
    assert "needed" in outcome.err  # the table is for people


def test_the_table_of_one_model(awq_edge_command: Command) -> None:
    outcome = awq_edge_command("fit", "Llama-2-13B", "--recipe", LAPTOP)
    assert outcome.code == 0
    assert re.search(r"^tight: needs 10\.\d\d GB with 4,096 tokens, 7\.78 GB", outcome.out, re.M)
    assert re.search(r"^longest context: \d+ tokens \(by memory\)$", outcome.out, re.M)
    assert re.search(r"^cheapest change that makes it fit: .*--context \d+$", outcome.out, re.M)
    assert "int8 KV cache (not built)" in outcome.out
    assert "kept by the system" in outcome.out


def test_all_devices(awq_edge_command: Command, tmp_path: Path) -> None:
    outcome = awq_edge_command("fit", "Llama-2-13B", "--all", "--json", tmp_path / "t.json")
    assert outcome.code == 0
    table = FitTable.model_validate_json((tmp_path / "t.json").read_text())
    assert {cell.model for cell in table.cells} == {"Llama-2-13B"}
    assert f"{LAPTOP}  " in outcome.out and "does not fit" in outcome.out


def test_all_models_on_all_devices(
    awq_edge_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [find_model(name) for name in ("Llama-2-13B", "Llama-2-70B", "OPT-125M")]
    monkeypatch.setattr("awq_edge.fit.models.all_known", lambda: few)
    outcome = awq_edge_command("fit", "--all")
    assert outcome.code == 0
    rows = {line.split()[0]: line.split()[1:] for line in outcome.out.splitlines() if line.strip()}
    assert "-" in rows["Llama-2-70B"] and "~418" in rows["Llama-2-13B"]
    assert rows["OPT-125M"] == ["2k"] * len(rows["OPT-125M"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit"], "MODEL is missing"),
        (["fit", "nobody"], "not in the shipped table"),
        (["fit", "demo", "--all", "--recipe", "cpu"], "leave out --recipe"),
        (["fit", "demo", "--kv-dtype", "int4"], "allowed values: float16, int8"),
        (["fit", "demo", "--recipe", "pc"], "unknown recipe"),
        (["fit", "demo", "--context", "9999"], "beyond the 1024 positions of demo"),
    ],
)
def test_one_line_of_what_is_wrong(
    awq_edge_command: Command, arguments: list[str], words: str
) -> None:
    assert words in awq_edge_command(*arguments).refused()


def test_a_runtime_of_another_name(awq_edge_command: Command) -> None:
    arguments = ("fit", "Llama-3.2-1B", "--recipe", "jetson-orin-nano-8gb", "--json", "-")
    tensorrt = json.loads(awq_edge_command(*arguments).out)
    onnxruntime = json.loads(awq_edge_command(*arguments, "--runtime", "onnxruntime").out)
    assert tensorrt["settings"]["runtime"] == "tensorrt"
    assert onnxruntime["settings"]["runtime"] == "onnxruntime"
    assert onnxruntime["weight_bytes"]["packing"] > 0 == tensorrt["weight_bytes"]["packing"]


def test_doctor_ends_well(awq_edge_command: Command) -> None:
    outcome = awq_edge_command("doctor", "--json", "-", "--recipe", "no-such-recipe")
    assert outcome.code == 0
    report = DoctorReport.model_validate_json(outcome.out)
    assert "unknown recipe" in report.recipe_reason
    assert "check" in outcome.err and "Python" in outcome.err
    assert awq_edge_command("doctor").code == 0


@pytest.mark.parametrize(
    ("page", "model"), [("fit.md", FitReport), ("fit.md", FitTable), ("doctor.md", DoctorReport)]
)
def test_every_key_is_described(page: str, model: type) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    described = set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE))
    keys = {key.replace("[]", "") for key in dotted_keys(model)}
    assert keys - described == set()
