"""What a device does with a bundle: run, chat and eval on a base install, without torch."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import awq_edge

from .conftest import BareEnvironment


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, exported where the host packages are."""
    out = tmp_path_factory.mktemp("device") / "bundle"
    awq_edge.export("demo", out, awq_edge.load_recipe(method="rtn"))
    return out


def test_run_reports(bare: BareEnvironment, bundle: Path, tmp_path: Path) -> None:
    result = bare.run(
        *("awq-edge", "run", str(bundle), "--prompt", "My lord,", "--max-new-tokens", "6"),
        *("--json", "-"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["result"]["generated_tokens"] == 6


def test_eval_gives_the_hosts_number(bare: BareEnvironment, bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The people of the United States have a great responsibility. " * 20)
    arguments = ("eval", "perplexity", str(bundle), "--text", str(text), "--window", "64")
    result = bare.run("awq-edge", *arguments, "--json", "-", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    from awq_edge.evaluate.report import evaluate_perplexity

    expected = evaluate_perplexity(bundle, text, window=64).perplexity
    assert json.loads(result.stdout)["perplexity"] == pytest.approx(expected, rel=1e-3)


def test_two_bundles_are_compared(bare: BareEnvironment, bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The people of the United States have a great responsibility. " * 5)
    arguments = ("eval", "divergence", str(bundle), "--reference", str(bundle))
    arguments += ("--text", str(text), "--window", "32", "--json", "-")
    result = bare.run("awq-edge", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["kl"]["mean"], report["top1_agreement"]) == (0, 1)


def test_tasks_say_what_to_install(bare: BareEnvironment, bundle: Path, tmp_path: Path) -> None:
    result = bare.run("awq-edge", "eval", "tasks", str(bundle), "--tasks", "gsm8k", cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: this needs lm-eval") and "pip install 'awq-edge[eval]'" in line


def test_serve_says_what_to_install(bare: BareEnvironment, bundle: Path, tmp_path: Path) -> None:
    result = bare.run("awq-edge", "serve", str(bundle), cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: this needs") and "pip install 'awq-edge[serve]'" in line


def test_chat_answers_a_pipe(bare: BareEnvironment, bundle: Path, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    result = subprocess.run(
        [str(bare.bin / "awq-edge"), "chat", str(bundle), "--max-new-tokens", "5"],
        input="Good morrow, my lord.\n",
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_inspect_needs_nothing_of_the_host(
    bare: BareEnvironment, bundle: Path, tmp_path: Path
) -> None:
    """A bundle, which brings the report of its quantization, and a model."""
    for target, kind in ((str(bundle), "bundle"), ("demo", "model")):
        result = bare.run("awq-edge", "inspect", target, "--json", "-", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout)
        assert (found["kind"], found["model_type"]) == (kind, "llama")
        assert found["parameters"] > 5_000_000
    page = tmp_path / "page.html"
    result = bare.run("awq-edge", "inspect", str(bundle), "--html", str(page), cwd=tmp_path)
    assert result.returncode == 2
    assert "this needs matplotlib" in result.stderr and "awq-edge[host]" in result.stderr
    assert not page.exists()


def test_a_target_that_is_not_there_is_the_error(bare: BareEnvironment, tmp_path: Path) -> None:
    """Not the missing torch, which a model would need."""
    text = tmp_path / "text.txt"
    text.write_text("some words")
    result = bare.run("awq-edge", "eval", "perplexity", "./no", "--text", str(text), cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: model directory no does not exist")
