"""`awq-edge bench`: a real bundle measured, files written, two reports compared, every refusal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from awq_edge.bench.plan import ids_sha256, prompt_ids
from awq_edge.bench.report import BenchReport
from awq_edge.errors import ConfigError
from awq_edge.runtime.tokenizer import Tokenizer

from .conftest import Command

BENCH = ("--prompt", "8,40", "--generated", "5", "--repeats", "2", "--threads", "1")


@pytest.fixture(scope="module")
def measured(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder with a measurement's files, and what was printed."""
    folder = tmp_path_factory.mktemp("bench")
    flags = ("--json", "a.json", "--csv", "a.csv", "--html", "a.html")
    command = [sys.executable, "-c", "from awq_edge.cli import main; main()"]
    done = subprocess.run(
        [*command, "bench", str(tiny_bundle), *BENCH, *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return folder, done.stdout


def test_a_real_measurement(measured: tuple[Path, str], tiny_bundle: Path) -> None:
    folder, out = measured
    report = BenchReport.model_validate_json((folder / "a.json").read_text())
    assert [(c.prompt_tokens, c.generated_tokens) for c in report.cells] == [(8, 5), (40, 5)]
    assert "prefill, tokens/s" in out and "8 + 5" in out and "TPOT" in out
    for cell in report.cells:
        assert len(cell.repeats) == 2
        assert all(len(repeat.steps) == 4 for repeat in cell.repeats)
        assert cell.decode is not None and cell.bandwidth.share_of_device is not None
        assert cell.peak.anonymous is None or cell.peak.anonymous > 1_000_000
    assert not report.interrupted
    assert report.plan.batch == 1 and report.notes[0].startswith("batch 1")
    # As anyone can draw them again.
    tokenizer = Tokenizer(tiny_bundle)
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    special = tokenizer.special_ids() | frozenset(manifest["eos_token_ids"])
    assert special
    prompt = prompt_ids(manifest["vocab_size"], special, 40, 0)
    assert not set(prompt) & special
    assert report.plan.prompt_sha256 == ids_sha256(prompt)
    assert {path.name for path in folder.iterdir()} == {"a.json", "a.csv", "a.html"}
    assert (folder / "a.csv").read_text().startswith("prompt_tokens,")
    assert "</html>" in (folder / "a.html").read_text()


def slower(report: BenchReport, factor: float) -> BenchReport:
    """The same report with decode slower, and five repeats instead of two."""
    cells = []
    for cell in report.cells:
        rate, tpot = cell.repeats[0].decode_tokens_per_second, cell.repeats[0].tpot
        assert rate is not None and tpot is not None
        changes = {"decode_tokens_per_second": rate / factor, "tpot": tpot * factor}
        cells.append(
            cell.model_copy(update={"repeats": (cell.repeats[0].model_copy(update=changes),) * 5})
        )
    return report.model_copy(update={"cells": tuple(cells)})


def test_a_reader_that_goes_loses_no_file(
    awq_edge_command: Command,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(*arguments: object) -> None:
        raise ConfigError("the table cannot be printed")

    monkeypatch.setattr("awq_edge.cli.bench_table.print_bench", gone)
    flags = ("--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
    assert "cannot be printed" in awq_edge_command("bench", tiny_bundle, *BENCH, *flags).refused()
    assert BenchReport.model_validate_json((tmp_path / "a.json").read_text()).cells
    assert (tmp_path / "a.csv").read_text()


def test_compare(awq_edge_command: Command, measured: tuple[Path, str], tmp_path: Path) -> None:
    report = BenchReport.model_validate_json((measured[0] / "a.json").read_text())
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(slower(report, 1.0).model_dump_json())
    after.write_text(slower(report, 2.0).model_dump_json())
    outcome = awq_edge_command("bench", "compare", before, after)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.count("worse") == 4 + 1  # two cells, two metrics; the rule
    assert "-50.0%" in outcome.out
    assert awq_edge_command("bench", "compare", before, after, "--fail-on-regression").code == 1
    assert awq_edge_command("bench", "compare", after, before, "--fail-on-regression").code == 0
    outcome = awq_edge_command("bench", "compare", before, after, "--json", "-")
    verdicts = [change["verdict"] for change in json.loads(outcome.out)["changes"]]
    assert verdicts.count("worse") == 4


def test_the_page_is_drawn_again(
    awq_edge_command: Command, measured: tuple[Path, str], tmp_path: Path
) -> None:
    again = tmp_path / "again.html"
    report = measured[0] / "a.json"
    assert awq_edge_command("bench", "page", report, "--html", again).code == 0
    assert again.read_text() == (measured[0] / "a.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("BUNDLE", "--prompt", "1000"), "need 1063 positions, the context has 256"),
        (("BUNDLE", "--prompt", "a"), "--prompt a: give whole numbers"),
        (("BUNDLE", "--repeats", "0"), "--repeats 0: must be 1 or more"),
        (("BUNDLE", "--context", "300"), "--context 300 is beyond the 256 tokens"),
        (("BUNDLE", "--html", "none/a.html"), "--html none/a.html: cannot be written"),
        (("BUNDLE", "--csv", "."), "--csv .: is a directory"),
        (("nowhere/at/all",), "does not exist"),
        (("compare", "a.json", "b.json"), "a.json does not exist"),
        (("compare", "MANIFEST", "MANIFEST"), "is not a bench report of this version"),
        (("compare", "a", "b", "--alpha", "1"), "--alpha 1.0: must be between 0 and 1"),
        (("page", "a.json", "--html", "a.html"), "a.json does not exist"),
    ],
)
def test_refusals(
    awq_edge_command: Command,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"BUNDLE": tiny_bundle, "MANIFEST": tiny_bundle / "manifest.json"}
    outcome = awq_edge_command("bench", *(places.get(one, one) for one in arguments))
    assert message in outcome.refused()
    assert list(tmp_path.iterdir()) == []


def test_help_is_as_it_is_typed(awq_edge_command: Command) -> None:
    out = " ".join(awq_edge_command("bench", "--help").out.split())
    assert "bench measure" not in out
    assert "--repeats" in out and "bench compare A.json B.json" in out


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_keeps_what_was_measured(tiny_bundle: Path, tmp_path: Path) -> None:
    """Slowed down, and it says when the first round that counts is over."""
    slow = (
        "import sys, time\n"
        "from awq_edge.runtime.backends.onnxruntime import OnnxRuntimeSession as Session\n"
        "from awq_edge.bench import measure\n"
        "decode, request = Session.decode, measure._request\n"
        "Session.decode = lambda self, token: (time.sleep(0.02), decode(self, token))[1]\n"
        "def said(*arguments):\n"
        "    result = request(*arguments)\n"
        "    print('request', file=sys.stderr, flush=True)\n"
        "    return result\n"
        "measure._request = said\n"
        "from awq_edge.cli import main; main()\n"
    )
    path = tmp_path / "report.json"
    flags = ("--prompt", "4", "--generated", "20", "--repeats", "1000", "--warmup", "0")
    process = subprocess.Popen(
        [sys.executable, "-c", slow, "bench", str(tiny_bundle), *flags, "--json", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # The suite itself may have been started with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    for _ in range(2):
        assert process.stderr.readline() == b"request\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted: " in out and b"of 1000 repeats were complete" in out
    report = BenchReport.model_validate_json(path.read_text())
    assert report.interrupted
    assert 2 <= len(report.cells[0].repeats) < 1000
