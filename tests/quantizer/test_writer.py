"""Shards: names, index, and that a checkpoint of several is read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from awq_edge.model import safetensors_files as model_files
from awq_edge.quantizer.checkpoint.safetensors_stream import (
    StreamedTensor,
    tensor_in_file,
    write_safetensors,
)
from awq_edge.quantizer.checkpoint.writer import CheckpointWriter

TYPES = {torch.int64: "I64", torch.float32: "F32"}


def streamed(tensor: torch.Tensor) -> StreamedTensor:
    return StreamedTensor(
        TYPES[tensor.dtype], tuple(tensor.shape), lambda: [row.numpy() for row in tensor]
    )


def test_small_checkpoints_are_one_file(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path)
    writer.add("a", streamed(torch.arange(4)))
    writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_large_ones_are_shards_with_an_index(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, shard_bytes=100)
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(5)}  # 40 bytes each
    for name, tensor in tensors.items():
        writer.add(name, streamed(tensor))
    writer.finish()
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 200}
    assert set(index["weight_map"]) == set(tensors)
    for name, file in index["weight_map"].items():
        with safe_open(str(tmp_path / file), framework="np") as shard:
            np.testing.assert_array_equal(shard.get_tensor(name), tensors[name].numpy())


def test_a_file_that_is_streamed_has_the_bytes_of_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes = (torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.float32, torch.int64)
    tensors = {
        f"{'bca'[i % 3]}.é{i}": (torch.randn(5, 3 + i) * 9).to(dtype)
        for i, dtype in enumerate((*dtypes, *reversed(dtypes)))
    } | {"scalar": torch.tensor(3.0), "flag": torch.tensor([True, False])}
    save_file(tensors, tmp_path / "library", metadata={"format": "pt"})
    monkeypatch.setattr(model_files, "_PIECE_BYTES", 20)
    entries = dict(model_files.read_header(tmp_path / "library"))
    pieces = {name: tensor_in_file(entry) for name, entry in reversed(entries.items())}
    assert max(len(list(tensor.pieces())) for tensor in pieces.values()) == 5
    write_safetensors(pieces, tmp_path / "streamed")
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "library").read_bytes()
