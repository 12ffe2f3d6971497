"""Standard streams that are full, closed or left by their reader, in commands as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="redirects as a POSIX shell does")

_PATIENCE = 240.0  # seconds: a machine that runs every test at once


def commands(bundle: Path) -> dict[str, list[str]]:
    few = ["--max-new-tokens", "4", "--threads", "1"]
    return {
        "recipes": ["recipes"],
        "recipe": ["recipes", "show", "cpu"],
        "recipe-json": ["recipes", "show", "cpu", "--json", "-"],
        "help": ["--help"],
        "version": ["--version"],
        "fit": ["fit", "demo"],
        "fit-json": ["fit", "demo", "--json", "-"],
        "inspect": ["inspect", str(bundle)],
        "doctor": ["doctor"],
        "run": ["run", str(bundle), *few],
        "run-json": ["run", str(bundle), *few, "--json", "-"],
        "chat": ["chat", str(bundle), *few],
    }


NAMES = list(commands(Path("bundle")))


def in_shell(redirection: str, arguments: list[str], stdin: bytes = b"Hi\n") -> tuple[int, str]:
    """Exit code and standard error of `awq-edge ARGUMENTS REDIRECTION`."""
    script = f'"$@" {redirection}'
    command = ["bash", "-c", script, "bash", sys.executable, "-m", "awq_edge", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=_PATIENCE, check=False)
    return done.returncode, done.stderr.decode()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", NAMES)
def test_a_full_standard_output_is_one_line(name: str, tiny_chat_bundle: Path) -> None:
    code, err = in_shell(">/dev/full", commands(tiny_chat_bundle)[name])
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2, err
    assert len(lines) == 1
    assert "standard output cannot be written: No space left on device" in lines[0]
    assert "Traceback" not in err and "Exception ignored" not in err


@pytest.mark.parametrize("name", ["recipes", "run", "chat"])
def test_a_closed_standard_output_is_one_line(name: str, tiny_chat_bundle: Path) -> None:
    code, err = in_shell(">&-", commands(tiny_chat_bundle)[name])
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("error: standard output is closed; redirect it")


@pytest.mark.parametrize("name", ["recipes", "recipe-json", "fit", "run", "chat"])
def test_a_reader_that_leaves_is_no_error(name: str, tiny_chat_bundle: Path) -> None:
    # The pipe's reader is gone before the first byte.
    code, err = in_shell("| true; exit ${PIPESTATUS[0]}", commands(tiny_chat_bundle)[name])
    assert code == 1
    assert "rror" not in err and "Exception" not in err


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_without_standard_error_the_exit_code_stays(
    redirection: str, tiny_chat_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert in_shell(f">{out} {redirection}", ["inspect", str(tiny_chat_bundle)])[0] == 0
    assert in_shell(f">{out} {redirection}", ["inspect", str(tmp_path / "none")])[0] == 2
    assert out.read_bytes() == b""  # the error did not go there instead


def test_a_usage_error_prints_no_control_characters() -> None:
    code, err = in_shell("", ["run", "x", "--\x1b]0;OWNED\x07"])
    assert code == 2
    assert "\x1b" not in err and "\\x1b]0;OWNED\\x07" in err


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGINT, 130, "interrupted: "), (signal.SIGTERM, 143, "ended by SIGTERM: ")],
)
def test_a_signal_says_what_is_kept(
    number: signal.Signals, code: int, words: str, tmp_path: Path
) -> None:
    """Quantizing is stopped behind its first block, then goes on from there."""
    out = tmp_path / "out"
    main = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from awq_edge.cli import main; main()"
    )
    arguments = ["quantize", "demo", "--out", str(out), "--samples", "16", "--length", "128"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", main, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        first = tmp_path / ".out.resume" / "00000.json"
        end = time.monotonic() + _PATIENCE
        while not first.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        process.send_signal(number)
        printed, err = process.communicate(timeout=_PATIENCE)
    if process.returncode == 0:
        pytest.skip(reason="it was done before the signal came")
    assert process.returncode == code, err
    assert printed == b""
    (line,) = err.decode().splitlines()
    assert line.startswith(f"error: {words}")
    assert f"kept in {tmp_path}/.out.resume; the same command goes on from there" in line
    assert {path.name for path in tmp_path.iterdir()} == {".out.resume"}
