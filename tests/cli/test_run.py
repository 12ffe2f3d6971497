"""`awq-edge run`: the text, the report, and every refusal in one line."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from awq_edge.run.report import RunReport

from .conftest import Command

COMMAND = [sys.executable, "-c", "from awq_edge.cli import main; main()"]
RUN = ("--max-new-tokens", "12", "--ignore-eos", "--threads", "1")


def test_text_then_table(awq_edge_command: Command, tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    outcome = awq_edge_command("run", tiny_bundle, "--prompt", "Once upon", *RUN, "--json", path)
    assert (outcome.code, outcome.err) == (0, "")
    report = RunReport.model_validate_json(path.read_text())
    assert outcome.out.startswith(report.result.text)
    table = outcome.out.removeprefix(report.result.text)
    assert "TTFT" in table and "tokens/s" in table and "total, peak" in table
    assert report.request.prompt == "Once upon"
    assert report.result.generated_tokens == 12
    assert list(tmp_path.iterdir()) == [path]


def test_json_alone_on_standard_output(awq_edge_command: Command, tiny_bundle: Path) -> None:
    outcome = awq_edge_command("run", tiny_bundle, *RUN, "--json", "-")
    assert outcome.code == 0
    report = RunReport.model_validate_json(outcome.out)
    assert outcome.err.startswith(report.result.text)
    assert "TTFT" in outcome.err
    assert report.request.prompt == "Once upon a time"  # the default


def test_prompt_from_a_file_and_from_standard_input(
    awq_edge_command: Command,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes("Thé end\r\n".encode())
    outcome = awq_edge_command("run", tiny_bundle, "--prompt-file", file, *RUN, "--json", "-")
    assert json.loads(outcome.out)["request"]["prompt"] == "Thé end"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("héllo\n".encode())))
    outcome = awq_edge_command("run", tiny_bundle, "--prompt-file", "-", *RUN, "--json", "-")
    assert json.loads(outcome.out)["request"]["prompt"] == "héllo"


def test_sampling_flags_reach_the_report(awq_edge_command: Command, tiny_bundle: Path) -> None:
    flags = ("--temperature", "0.8", "--top-k", "40", "--top-p", "0.9", "--seed", "7")
    flags += ("--min-p", "0.01", "--repetition-penalty", "1.1", "--stop", "xyzzy")
    runs = [awq_edge_command("run", tiny_bundle, *flags, *RUN, "--json", "-") for _ in range(2)]
    request, again = (json.loads(outcome.out) for outcome in runs)
    assert request["result"]["token_ids"] == again["result"]["token_ids"]
    wanted = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 7, "min_p": 0.01}
    wanted |= {"repetition_penalty": 1.1, "stop": ["xyzzy"], "ignore_eos": True}
    assert {key: request["request"][key] for key in wanted} == wanted


def test_the_chat_template_is_used_unless_raw(
    awq_edge_command: Command, tiny_chat_bundle: Path
) -> None:
    def prompt_tokens(*flags: str) -> tuple[str, int]:
        outcome = awq_edge_command("run", tiny_chat_bundle, *RUN, *flags, "--json", "-")
        request = json.loads(outcome.out)["request"]
        return request["prompt_format"], request["prompt_tokens"]

    chat, raw = prompt_tokens(), prompt_tokens("--raw")
    assert (chat[0], raw[0]) == ("chat", "raw")
    assert chat[1] > raw[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--context", "300"), "--context 300 is beyond the 256 tokens"),
        (("--context", "0"), "--context 0: must be 1 or more"),
        (("--prompt", ""), "--prompt: the prompt is empty"),
        (("--prompt", " \n"), "--prompt: the prompt is empty"),
        (("--prompt", "word " * 300), "the context holds 256; shorten it"),
        (("--prompt", "a\udcff"), "not UTF-8 at character 1"),
        (("--prompt", "a", "--prompt-file", "b"), "exclude each other"),
        (("--prompt-file", "missing.txt"), "--prompt-file missing.txt does not exist"),
        (("--prompt-file", "/dev/zero"), "is a device or socket, not a plain file"),
        (("--max-new-tokens", "0"), "--max-new-tokens 0: must be 1 or more"),
        (("--max-new-tokens", "1000"), "lower --max-new-tokens"),
        (("--temperature", "-1"), "--temperature -1.0: must be greater than or equal to 0"),
        (("--stop", ""), "--stop: the text is empty"),
        (("--threads", "0"), "--threads 0: must be 1 or more"),
        (("--seed", "-1"), "--seed -1: must be 0 or more"),
        (("--repetition-penalty", "-2"), "--repetition-penalty -2: must be greater than 0"),
        (("--min-p", "nan"), "--min-p nan: must be"),
        (("--chat-template", "none"), "--chat-template none does not exist"),
        (("--chat",), "has no chat template"),
        (("--json", "/proc/report.json"), "--json /proc/report.json: cannot be written"),
        (("--json", "none/report.json"), "--json none/report.json: cannot be written"),
    ],
)
def test_refusals(
    awq_edge_command: Command,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    report = ("--json", "report.json") if "--json" not in flags else ()
    assert message in awq_edge_command("run", tiny_bundle, *flags, *report).refused()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"), [(b"\n", "the prompt is empty"), (b"ab\xff", "is not UTF-8: byte 2")]
)
def test_prompt_files_that_cannot_be_used(
    awq_edge_command: Command, tiny_bundle: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(content)
    assert message in awq_edge_command("run", tiny_bundle, "--prompt-file", file).refused()


def test_a_model_instead_of_a_bundle(awq_edge_command: Command, tiny_llama: Path) -> None:
    assert "is a model, not a bundle" in awq_edge_command("run", tiny_llama).refused()


def test_text_that_the_terminal_cannot_show(tiny_bundle: Path) -> None:
    """A locale without UTF-8 gets question marks, not a traceback."""
    result = subprocess.run(
        [*COMMAND, "run", str(tiny_bundle), "--temperature", "1", "--seed", "1", *RUN],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert b"?" in result.stdout
    assert b"TTFT" in result.stdout


def test_a_reader_that_leaves_ends_the_run_quietly(tiny_bundle: Path) -> None:
    """`awq-edge run BUNDLE | head -c 1`"""
    process = subprocess.Popen(
        [*COMMAND, "run", str(tiny_bundle), *RUN], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=300) == 1


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_ends_with_the_report_of_what_ran(tiny_bundle: Path, tmp_path: Path) -> None:
    """The model is slowed down, so that Ctrl-C meets it in the middle of its text."""
    slow = (
        "import time\n"
        "from awq_edge.runtime.backends.onnxruntime import OnnxRuntimeSession as Session\n"
        "decode = Session.decode\n"
        "Session.decode = lambda self, token: (time.sleep(0.05), decode(self, token))[1]\n"
        "from awq_edge.cli import main; main()\n"
    )
    path = tmp_path / "report.json"
    process = subprocess.Popen(
        [sys.executable, "-c", slow, "run", str(tiny_bundle), "--ignore-eos", "--json", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(1)  # the first text is there
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err == b""
    assert b"interrupted" in out and b"TTFT" in out
    report = RunReport.model_validate_json(path.read_text())
    assert report.result.finish_reason == "cancelled"
    assert 0 < report.result.generated_tokens < 128
