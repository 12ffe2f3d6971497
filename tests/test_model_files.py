"""Reading safetensors: exact values, and one clear error for every kind of damage."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from awq_edge.errors import ModelError
from awq_edge.model_files import ModelFiles, read_header, resolve_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "b": rng.normal(size=(4,)).astype(np.float16),
        "c": rng.integers(-9, 9, (2, 2, 2)).astype(np.int32),
        "empty": np.zeros((0, 3), np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_values_are_exact(model: Path) -> None:
    from safetensors.numpy import load_file

    files = ModelFiles(model)
    for name, expected in load_file(model / "model.safetensors").items():
        found = files.read(name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert list(files.entries) == ["a", "b", "c", "empty"]


def test_bfloat16_comes_as_float32(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="host extra")
    from safetensors.torch import save_file as save_torch

    (tmp_path / "config.json").write_text("{}")
    values = torch.randn(7, 3).to(torch.bfloat16)
    save_torch({"w": values}, tmp_path / "model.safetensors")
    files = ModelFiles(tmp_path)
    np.testing.assert_array_equal(files.read("w"), values.float().numpy())
    bits, dtype = files.read_bits("w")
    assert dtype == "BF16"
    np.testing.assert_array_equal(bits.view(np.int16), values.view(torch.int16).numpy())


def test_shards_are_found_through_the_index(model: Path) -> None:
    save_file({"d": np.ones(2, np.float32)}, model / "second.safetensors")
    index = {"weight_map": {"a": "model.safetensors", "d": "second.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "d" in ModelFiles(model)
    (model / "second.safetensors").unlink()
    with pytest.raises(ModelError, match=r"second\.safetensors does not exist"):
        ModelFiles(model)


def test_missing_pieces_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        ModelFiles(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"config\.json does not exist"):
        ModelFiles(tmp_path)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        ModelFiles(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"no \*\.safetensors files; it has PyTorch \.bin"):
        ModelFiles(tmp_path)


def test_truncated_file_is_refused(model: Path) -> None:
    path = model / "model.safetensors"
    data = path.read_bytes()
    for length in (0, 4, 8, 40, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError, match="not a valid safetensors file"):
            ModelFiles(model)


def test_file_that_shrinks_after_opening_is_refused(model: Path) -> None:
    files = ModelFiles(model)
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[: files.entries["c"].offset + 3])
    with pytest.raises(ModelError, match="is truncated"):
        files.read("c")


@given(st.binary(max_size=200))
def test_garbage_never_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.safetensors"
    for content in (data, struct.pack("<Q", len(data)) + data):
        path.write_bytes(content)
        try:
            assert list(read_header(path)) == []
        except ModelError:
            pass


@pytest.mark.parametrize("name", ["/no/such/dir", "./nothing", "nothing-here", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match="does not exist; give a directory, a hub id"):
        resolve_model(name)


def test_hub_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match="copy the model here and give its directory"):
        resolve_model("organization/model")
