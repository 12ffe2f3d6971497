"""`awq-edge eval perplexity`, `eval divergence` and `eval tasks`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from awq_edge.evaluate.divergence_report import DivergenceReport
from awq_edge.evaluate.report import PerplexityReport
from awq_edge.evaluate.tasks import TasksReport
from tests.tiny_models import TEXT

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
    assert "150 tokens, window 64, stride 32, each window behind BOS" in outcome.out
    assert (report.window, report.stride, report.tokens) == (64, 32, 150)


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
        (("--text", "missing.txt"), "--text missing.txt does not exist"),
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


def test_divergence_table_and_json(
    awq_edge_command: Command, tiny_bundle: Path, tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    command = ("eval", "divergence", tiny_bundle, "--reference", tiny_llama, "--text", text, *SMALL)
    outcome = awq_edge_command(*command, "--json", path)
    assert (outcome.code, outcome.err) == (0, "")
    report = DivergenceReport.model_validate_json(path.read_text())
    kl, bundle_line, reference_line = (outcome.out.splitlines()[i] for i in (0, -2, -1))
    error = report.kl.standard_error
    assert kl == f"KL divergence {report.kl.mean:.4g} ± {error:.2g} nats per token"
    assert "top-1 agreement 100.00%" in outcome.out and "150 tokens, window 64" in outcome.out
    assert f"perplexity {report.perplexity:.4f}, reference " in outcome.out
    assert bundle_line.startswith(f"bundle {tiny_bundle}: unquantized, float32, accuracy level 0")
    assert reference_line.startswith(f"reference: model {tiny_llama}: unquantized, float32")


@pytest.mark.parametrize(
    ("reference", "flags", "message"),
    [
        ("none", (), "none does not exist"),
        ("tiny", ("--window", "999"), "--window 999 is beyond the context of 256"),
        ("tiny", ("--max-tokens", "0"), "--max-tokens 0: must be 1 or more"),
        ("demo", (), "have vocabularies of"),
    ],
)
def test_divergence_refusals(
    awq_edge_command: Command,
    tiny_bundle: Path,
    text: Path,
    tmp_path: Path,
    reference: str,
    flags: tuple[str, ...],
    message: str,
) -> None:
    place = {"none": tmp_path / "none", "tiny": tiny_bundle, "demo": "demo"}[reference]
    command = ("eval", "divergence", tiny_bundle, "--reference", place, "--text", text, *flags)
    assert message in awq_edge_command(*command).refused()


TASK = """
task: a_task_with_a_name_that_is_longer_than_a_narrow_terminal_is_wide
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}, cache_dir: CACHE}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 4}
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with one task of three questions."""
    pytest.importorskip("lm_eval", reason="needs the [eval] extra")
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "data.jsonl"
    line = json.dumps({"question": "Once upon a", "choices": ["time", "girl"], "answer": 0})
    data.write_text(f"{line}\n" * 3)
    text = TASK.replace("DATA", str(data)).replace("CACHE", str(folder / "cache"))
    (folder / "task.yaml").write_text(text)
    return folder


def test_tasks_table_and_json(
    awq_edge_command: Command, tiny_bundle: Path, tasks: Path, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    command = ("eval", "tasks", tiny_bundle, "--tasks", "a_task*", "--include-path", tasks)
    outcome = awq_edge_command(*command, "--limit", "2", "--json", path)
    assert (outcome.code, outcome.err) == (0, "")
    report = TasksReport.model_validate_json(path.read_text())
    ((result,), (metric,)) = report.results, report.results[0].metrics
    header, row, *_ = outcome.out.splitlines()
    assert header.split() == [
        *("task", "version", "n-shot", "samples", "filter", "metric", "value", "±", "error")
    ]
    assert row.split() == [
        *(result.name, "4", "0", "2", "none", "acc", "↑"),
        *(f"{metric.value:.4f}", f"{metric.standard_error:.4f}"),
    ]
    assert result.name == "a_task_with_a_name_that_is_longer_than_a_narrow_terminal_is_wide"
    assert "limit 2, examples the tasks' own, chat template not applied" in outcome.out
    alone = awq_edge_command(*command, "--json", "-")
    assert json.loads(alone.out)["results"][0]["samples"] == 3
    assert "a_task" in alone.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--limit", "0"), "--limit 0: must be 1 or more"),
        (("--apply-chat-template",), "--apply-chat-template: "),
        (("--batch-size", "4"), "--batch-size 4: a bundle runs one sequence at a time"),
        (("--context", "999"), "--context 999 is beyond the 256 tokens"),
        (("--dtype", "float16"), "a bundle runs as it was exported"),
        (("--json", "none/x.json"), "--json none/x.json: cannot be written"),
    ],
)
def test_tasks_refusals(
    awq_edge_command: Command,
    tiny_bundle: Path,
    tasks: Path,
    flags: tuple[str, ...],
    message: str,
) -> None:
    command = ("eval", "tasks", tiny_bundle, "--tasks", "a_task*", "--include-path", tasks)
    assert message in awq_edge_command(*command, *flags).refused()
