"""`awq-edge export --gguf`, and the other commands on its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks.artifacts import tiny_gguf

from .conftest import Command


def test_a_file_of_the_demo(awq_edge_command: Command, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the [gguf] extra")
    file = tmp_path / "demo.gguf"
    options = ("--gguf", file, "--method", "rtn", "--scheme", "symmetric")
    done = awq_edge_command("export", "demo", *options)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{file}: llama for llama.cpp; ")
    assert "weights: Q4_0 " in done.out and f"llama-cli -m {file}" in done.out
    assert "exists; choose another --gguf" in awq_edge_command("export", "demo", *options).refused()
    assert awq_edge_command("export", "demo", *options, "--overwrite").code == 0
    shown = awq_edge_command("inspect", file)
    assert shown.code == 0 and "Q4_0" in shown.out
    assert "quantized by awq-edge: rtn, 4-bit, group" in shown.out


@pytest.mark.parametrize("command", ["run", "chat", "serve"])
def test_what_runs_a_bundle_says_what_runs_the_file(
    command: str, awq_edge_command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(tiny_gguf())
    line = awq_edge_command(command, file).refused()
    assert f"`llama-cli -m {file}` of llama.cpp" in line and "ollama run x" in line


@pytest.mark.parametrize("command", ["quantize", "export"])
def test_what_reads_a_model_names_the_format(
    command: str, awq_edge_command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(tiny_gguf())
    line = awq_edge_command(command, file, "--out", tmp_path / "out").refused()
    assert "holds GGUF" in line and "give the Hugging Face model" in line


def test_one_of_folder_and_file(awq_edge_command: Command, tmp_path: Path) -> None:
    both = ("--out", tmp_path / "out", "--gguf", tmp_path / "x.gguf")
    for options in ((), both):
        line = awq_edge_command("export", "demo", *options).refused()
        assert "give one of --out FOLDER (a bundle) and --gguf FILE" in line
    line = awq_edge_command("export", "demo", *both[2:], "--sampling", "greedy").refused()
    assert "--sampling is for a bundle" in line
