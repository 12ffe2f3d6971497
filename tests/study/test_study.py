"""The command: tables, plots and JSON of a small study, and what it refuses."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import awq_edge
from awq_edge.cli import main, run_app
from awq_edge.errors import ConfigError, ModelError
from awq_edge.evaluate.report import evaluate_perplexity
from awq_edge.model.hub import resolve_model
from experiments.__main__ import app
from experiments.result import StudyReport
from experiments.run import markdown, run_study, write_results
from experiments.salient import make_salient
from experiments.tables import table_of
from experiments.treatments import Treatment
from experiments.workbench import Calibration, Subject, Text, Workbench

MAX_TOKENS = 150
NAMES = ("salience", "fixed-s", "int2", "calibration-domain", "propagation")


@pytest.fixture(scope="module")
def report(study_model: Path, texts: dict[str, Path]) -> StudyReport:
    return run_study(
        NAMES,
        model=str(study_model),
        held_out=texts["held_out"],
        text=texts["text"],
        calibrations=[str(texts["own"]), str(texts["other"])],
        salient=False,
        max_tokens=MAX_TOKENS,
    )


def bench(study_model: Path, texts: dict[str, Path], notes: list[str] | None = None) -> Workbench:
    return Workbench(
        {"model": study_model},
        device=torch.device("cpu"),
        calibration=Calibration(str(texts["own"]), samples=4),
        max_tokens=MAX_TOKENS,
        note=None if notes is None else notes.append,
    )


def test_perplexity_is_that_of_eval(study_model: Path, texts: dict[str, Path]) -> None:
    held_out = Text.read(texts["held_out"])
    subject = Subject("model", Treatment("none"), Calibration(str(texts["own"]), samples=4))
    found = bench(study_model, texts).measure(subject, [held_out])[held_out.name]
    expected = evaluate_perplexity(study_model, texts["held_out"], max_tokens=MAX_TOKENS)
    assert (found.perplexity, found.tokens) == (
        pytest.approx(expected.perplexity, rel=1e-6),
        expected.tokens,
    )
    assert (found.gap.value, found.gap.standard_error) == (0, 0)


def test_nothing_is_measured_twice(study_model: Path, texts: dict[str, Path]) -> None:
    notes: list[str] = []
    held_out = Text.read(texts["held_out"])
    own = Calibration(str(texts["own"]), samples=4)
    work = bench(study_model, texts, notes)
    for calibration in (own, Calibration(str(texts["other"]), samples=4)):
        for treatment in (Treatment("rtn", 3), Treatment("awq", 3), Treatment("awq", 3)):
            work.measure(Subject("model", treatment, calibration), [held_out])
    measured = [note for note in notes if "statistics" not in note]
    # Plain rounding does not depend on the calibration, AWQ does.
    assert sorted(measured) == sorted(
        ["model: 16-bit", "model: INT3 g128 rtn", *["model: INT3 g128 awq"] * 2]
    )


def test_a_difference_and_its_standard_error(study_model: Path, texts: dict[str, Path]) -> None:
    """Of sums by window: checked against the whole of it, computed from the losses."""
    held_out = Text.read(texts["held_out"])
    own = Calibration(str(texts["own"]), samples=4)
    work = bench(study_model, texts)
    one, other = (Subject("model", Treatment("rtn", bits), own) for bits in (2, 4))
    found = work.compare(one, other, [held_out])[held_out.name]
    first, second = (work.measure(each, [held_out])[held_out.name] for each in (one, other))
    assert found.value == pytest.approx(first.perplexity - second.perplexity)
    losses = [work._losses_of(each, [held_out])[held_out] for each in (one, other)]
    sums = np.array([(a - b).sum() for a, b in zip(*losses, strict=True)])
    per_token = math.sqrt(len(sums) * sums.var(ddof=1)) / first.tokens
    assert found.standard_error == pytest.approx(first.perplexity * per_token)
    assert found.standard_error > 0


def test_rows_of_the_experiments(report: StudyReport) -> None:
    assert [experiment.name for experiment in report.experiments] == list(NAMES)
    salience, fixed, int2, domain, propagation = (each.rows for each in report.experiments)
    by_method = {row.method: row for row in salience}
    assert len(by_method) == 12 and len(salience) == 12 + 2 + 3  # draws, and values of s
    gaps = {name: row.texts["held_out.txt"].gap.value for name, row in by_method.items()}
    assert gaps["none"] == 0 < abs(gaps["w8a8"]) < gaps["awq+gptq"] < gaps["rtn"]
    assert by_method["w8a8"].bits_per_weight == pytest.approx(8.1, abs=0.1)
    assert by_method["smoothquant"].calibration is not None
    assert [row.s for row in fixed] == [1, 1.25, 1.5, 2, 4, 8, 16]
    first, *others = (row.effect for row in fixed)
    assert first is not None and first.changed_groups == 0
    assert 1 < first.activation_peaks[0] < first.activation_peaks[1]
    assert first.scale_ratio == first.salient_error_ratio == first.other_error_ratio == 1
    for row, effect in zip(fixed[1:], others, strict=True):
        assert effect is not None and row.s is not None
        assert 0 < effect.changed_groups < 1 and effect.scale_ratio > 1
        assert effect.salient_error_ratio < 1
        if row.s <= 4:  # the paper's argument: the error of the scaled channels falls with 1/s
            expected = pytest.approx(effect.expected_error_ratio, rel=0.25)
            assert effect.salient_error_ratio == expected
            assert 0.99 < effect.other_error_ratio < 1.5
    # The larger s, the more groups it is the largest weight of.
    changed = [effect.changed_groups for effect in (first, *others) if effect is not None]
    assert changed == sorted(changed)
    assert {(row.group_size, row.method) for row in int2} == {
        (size, method) for size in (64, 128) for method in ("rtn", "awq", "gptq", "awq+gptq")
    }
    assert {row.calibration.source for row in domain if row.calibration} == {"own.txt", "other.txt"}
    assert all(set(row.texts) == {"held_out.txt", "text.txt"} for row in domain)
    assert [row.propagate_error for row in propagation] == [False, True] * 6
    assert all(row.differences for row in propagation if row.propagate_error)


def test_tables_and_plots(report: StudyReport, tmp_path: Path) -> None:
    paths = write_results(report, tmp_path)
    assert [path.name for path in paths] == [
        "study.json",
        "study.md",
        *(f"study_{name}.svg" for name in NAMES),
    ]
    assert StudyReport.model_validate_json((tmp_path / "study.json").read_text()) == report
    text = markdown(report)
    for experiment in report.experiments:
        table = table_of(experiment)
        assert all(len(row) == len(table.header) for row in table.rows)
        assert table.markdown() in text
        root = ElementTree.parse(tmp_path / f"study_{experiment.name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
    # The same rows make the same files.
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_results(report, tmp_path)] == before


def test_the_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    study_model: Path,
    texts: dict[str, Path],
    tmp_path: Path,
) -> None:
    def run(*arguments: object) -> None:
        command = ["experiments", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", [*command, "--held-out", str(texts["held_out"])])
        run_app(app)

    out, path = tmp_path / "results", tmp_path / "study.json"
    run(
        *("fixed-s", "--model", study_model, "--max-tokens", MAX_TOKENS, "--no-salient"),
        *("--calibration", texts["own"], "--out", out, "--json", path),
    )
    captured = capsys.readouterr()
    assert captured.err == ""
    report = StudyReport.model_validate_json(path.read_text())
    assert report == StudyReport.model_validate_json((out / "study.json").read_text())
    assert (report.window, report.stride, report.max_tokens) == (64, 32, MAX_TOKENS)
    (experiment,) = report.experiments
    assert "fixed-s" in captured.out and f"s = {experiment.rows[-1].s:g}" in captured.out
    assert sorted(file.name for file in out.iterdir()) == [
        "study.json",
        "study.md",
        "study_fixed-s.svg",
    ]
    for arguments, message in (
        (["fixed"], "no experiment fixed; did you mean fixed-s?"),
        ([], "give two: --calibration packaged --calibration FILE"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(*arguments)
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_what_is_refused(
    study_model: Path, tiny_llama: Path, texts: dict[str, Path], tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words")
    with pytest.raises(ConfigError, match=r"short.txt has \d+ tokens; a study scores at least two"):
        run_study(["int2"], model=str(study_model), held_out=short, salient=False)
    quantized = awq_edge.quantize(
        study_model, tmp_path / "out", awq_edge.load_recipe(method="rtn", group_size=32)
    ).path
    with pytest.raises(ModelError, match="is quantized already; a study needs"):
        run_study(["int2"], model=str(quantized), held_out=texts["held_out"])
    with pytest.raises(ModelError, match=r"q_proj has 64 in_features; int2 take groups of 128"):
        run_study(["int2"], model=str(tiny_llama), held_out=texts["held_out"])


def test_the_salient_variant_computes_the_same(study_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    salient = make_salient(study_model, tmp_path / "salient")
    ids = torch.arange(40)[None]
    outputs, norms = [], []
    for path in (study_model, salient):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        with torch.no_grad():
            outputs.append(model(ids).logits)
        norms.append(model.model.layers[0].input_layernorm.weight.detach())
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)
    changed = (norms[0] != norms[1]).sum()
    assert int(changed) == int(128 * 0.02)
    assert resolve_model(str(salient)) == salient


def test_the_old_command_says_where_it_went(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["awq-edge", "study", "fixed-s", "--held-out", "x.txt"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and "python -m experiments" in capsys.readouterr().err
