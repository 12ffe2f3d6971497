"""Pipes and devices where a command reads a file: one line, and no waiting for a writer."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from awq_edge.model.hub import resolve_model

from .conftest import Command

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")

_PATIENCE = 60  # seconds: a command that waits for a writer waits for ever
_QUANTIZE = ("quantize", "demo", "--out", "OUT", "--samples", "2", "--length", "16")
_EXPORT = ("export", "demo", "--out", "OUT", "--samples", "2", "--length", "16")


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        pytest.fail("the command waits for a writer of the pipe")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(_PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe.toml"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        (*_QUANTIZE, "--calibration", "PIPE"),
        (*_QUANTIZE, "--eval-text", "PIPE"),
        (*_QUANTIZE, "--recipe", "PIPE"),
        (*_EXPORT, "--calibration", "PIPE"),
        (*_EXPORT, "--recipe", "PIPE"),
        ("fit", "demo", "--recipe", "PIPE"),
        ("recipes", "show", "PIPE"),
        ("eval", "perplexity", "demo", "--text", "PIPE"),
        ("eval", "divergence", "demo", "--reference", "demo", "--text", "PIPE"),
        ("bench", "compare", "PIPE", "PIPE"),
        ("bench", "page", "PIPE", "--html", "OUT"),
        ("inspect", "PIPE"),
        ("fit", "PIPE"),
        ("quantize", "PIPE", "--out", "OUT"),
        ("export", "PIPE", "--out", "OUT"),
        ("eval", "perplexity", "PIPE", "--text", "PIPE"),
        ("run", "PIPE"),
        ("chat", "PIPE"),
        ("serve", "PIPE"),
        ("build", "PIPE", "--runtime", "tensorrt-rtx"),
        ("bench", "PIPE"),
        ("run", "BUNDLE", "--prompt-file", "PIPE"),
        ("run", "BUNDLE", "--chat-template", "PIPE"),
        ("chat", "BUNDLE", "--chat-template", "PIPE"),
        ("serve", "BUNDLE", "--chat-template", "PIPE"),
    ],
    ids=" ".join,
)
def test_a_pipe_is_refused(
    awq_edge_command: Command,
    tiny_chat_bundle: Path,
    pipe: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    names = {"PIPE": pipe, "OUT": tmp_path / "out", "BUNDLE": tiny_chat_bundle}
    line = awq_edge_command(*(names.get(each, each) for each in arguments)).refused()
    assert str(pipe) in line
    assert [path.name for path in tmp_path.iterdir()] == [pipe.name]


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "perplexity", "demo", "--text"),
        (*_QUANTIZE, "--calibration"),
        ("run", "BUNDLE", "--prompt-file"),
        ("run", "BUNDLE", "--chat-template"),
    ],
    ids=" ".join,
)
def test_a_device_is_refused(
    awq_edge_command: Command,
    tiny_chat_bundle: Path,
    tmp_path: Path,
    name: str,
    arguments: tuple[str, ...],
) -> None:
    names = {"OUT": tmp_path / "out", "BUNDLE": tiny_chat_bundle}
    outcome = awq_edge_command(*(names.get(each, each) for each in arguments), name)
    assert f"{name} is a device or socket, not a plain file" in outcome.refused()


@pytest.mark.parametrize("file", sorted(path.name for path in resolve_model("demo").iterdir()))
def test_a_pipe_inside_a_model(awq_edge_command: Command, tmp_path: Path, file: str) -> None:
    model = Path(shutil.copytree(resolve_model("demo"), tmp_path / "model"))
    (model / file).unlink()
    os.mkfifo(model / file)
    out = tmp_path / "out"
    for command in (("inspect", model), (*_QUANTIZE[:1], model, "--out", out, "--method", "rtn")):
        outcome = awq_edge_command(*command)
        assert outcome.code == 0 or "not a plain file" in outcome.refused()
        shutil.rmtree(out, ignore_errors=True)


@pytest.mark.parametrize("file", ["model.onnx", "model.onnx.data", "tokenizer.json", "recipe.json"])
@pytest.mark.parametrize("command", [("run",), ("inspect",), ("inspect", "--verify"), ("bench",)])
def test_a_pipe_inside_a_bundle(
    awq_edge_command: Command,
    tiny_chat_bundle: Path,
    tmp_path: Path,
    file: str,
    command: tuple[str, ...],
) -> None:
    bundle = Path(shutil.copytree(tiny_chat_bundle, tmp_path / "bundle"))
    (bundle / file).unlink()
    os.mkfifo(bundle / file)
    outcome = awq_edge_command(*command, bundle)
    assert f"{bundle / file} is a pipe, not a plain file" in outcome.refused()
