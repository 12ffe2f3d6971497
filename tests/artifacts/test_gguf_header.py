"""Headers of GGUF files: read, and damaged in every byte."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from awq_edge.artifacts.gguf_header import how_to_run, is_gguf, is_own_gguf, read_gguf_header
from awq_edge.errors import ArtifactError
from tests.attacks.artifacts import tiny_gguf

SOUND = tiny_gguf()
DATA = 64  # bytes of its one tensor


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_header(tmp_path: Path) -> None:
    header = read_gguf_header(saved(tmp_path / "x.gguf", SOUND))
    assert header.architecture == "llama" and header.of_architecture("block_count") == 1
    assert header.keys["tokenizer.ggml.add_bos_token"] is True
    assert header.array_lengths == {"tokenizer.ggml.tokens": 3, "tokenizer.ggml.token_type": 3}
    (tensor,) = header.tensors
    assert (tensor.name, tensor.shape, tensor.type) == ("token_embd.weight", (2, 8), "F32")
    assert (header.size, header.data_bytes) == (len(SOUND), DATA)
    assert header.type_bytes() == {"F32": DATA}


def test_a_header_of_ours(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.gguf", SOUND)
    assert is_gguf(file) and not is_own_gguf(file)
    # Another key of as many letters.
    ours = SOUND.replace(b"general.name", b"awq_edge.ver").replace(
        struct.pack("<Q", 12) + b"awq_edge.ver", struct.pack("<Q", 16) + b"awq_edge.version"
    )
    assert is_own_gguf(saved(file, ours))
    assert not is_own_gguf(saved(file, ours[:60]))
    assert not is_gguf(saved(file, b"PK")) and not is_gguf(tmp_path)


def test_what_to_type_is_what_a_shell_and_ollama_take() -> None:
    typed = how_to_run(Path("/tmp/My Model.gguf"))
    assert "`llama-cli -m '/tmp/My Model.gguf'`" in typed
    assert "`echo 'FROM /tmp/My Model.gguf' > Modelfile && ollama create my-model -f" in typed


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert not is_gguf(tmp_path / "pipe")


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    """Wherever it ends within the header."""
    file = tmp_path / "x.gguf"
    for size in range(len(b"GGUF"), len(SOUND) - DATA - 31):
        with pytest.raises(ArtifactError, match="damaged GGUF file"):
            read_gguf_header(saved(file, SOUND[:size]))


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (4, struct.pack("<I", 1), "version 1 is none of"),
        (8, struct.pack("<Q", 1 << 60), "tensors; at most"),
        (16, struct.pack("<Q", 1 << 60), "keys; at most"),
        (24, struct.pack("<Q", 1 << 60), "bytes of a string; at most"),
    ],
)
def test_numbers_that_cannot_be(place: int, value: bytes, reason: str, tmp_path: Path) -> None:
    """Refused before anything is made of that size."""
    damaged = SOUND[:place] + value + SOUND[place + len(value) :]
    with pytest.raises(ArtifactError, match=reason):
        read_gguf_header(saved(tmp_path / "x.gguf", damaged))


def test_any_byte_may_be_another(tmp_path: Path) -> None:
    """Read, or refused in one error of this project's."""
    file, refused = tmp_path / "x.gguf", 0
    for place in range(len(SOUND) - DATA):
        damaged = bytearray(SOUND)
        damaged[place] ^= 0xFF
        try:
            read_gguf_header(saved(file, bytes(damaged)))
        except ArtifactError:
            refused += 1
    assert refused > 100
