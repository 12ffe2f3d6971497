"""Shards: names, index, and that a checkpoint of several is read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from awq_edge.quantizer.writer import CheckpointWriter


def test_small_checkpoints_are_one_file(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path)
    writer.add("a", torch.arange(4))
    writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_large_ones_are_shards_with_an_index(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, shard_bytes=100)
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(5)}  # 40 bytes each
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.finish()
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 200}
    assert set(index["weight_map"]) == set(tensors)
    for name, file in index["weight_map"].items():
        with safe_open(str(tmp_path / file), framework="np") as shard:
            np.testing.assert_array_equal(shard.get_tensor(name), tensors[name].numpy())
