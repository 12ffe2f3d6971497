"""`inspect` on GGUF files, whoever wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_edge.artifacts.directories import hash_file
from awq_edge.errors import ArtifactError, ConfigError
from awq_edge.inspect.artifact import inspect_artifact
from tests.attacks.artifacts import tiny_gguf


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_gguf())
    return path


def test_a_file_of_another_tool(file: Path) -> None:
    found = inspect_artifact(file, hashes=True)
    assert (found.kind, found.model_type, found.provenance.model_name) == (
        "GGUF file",
        "llama",
        "tiny",
    )
    assert found.architecture is not None
    assert (found.architecture.heads, found.architecture.head_size) == (2, 4)
    assert (found.architecture.vocab_size, found.architecture.tied_embeddings) == (3, True)
    assert (found.parameters, found.weight_bytes, found.bits_per_weight) == (16, 64, 32.0)
    assert found.dtypes["F32"].tensors == 1
    assert found.files[0].sha256 == hash_file(file).sha256
    assert any("llama-cli -m" in note and "ollama create" in note for note in found.notes)


def test_there_is_nothing_to_verify_with(file: Path) -> None:
    with pytest.raises(ConfigError, match="is a GGUF file, which has no hashes"):
        inspect_artifact(file, verify=True)


def test_a_damaged_file(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:80])
    with pytest.raises(ArtifactError, match="ends within its header"):
        inspect_artifact(file)
