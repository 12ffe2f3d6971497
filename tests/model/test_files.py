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
from awq_edge.model.files import ModelFiles
from awq_edge.model.hub import resolve_model
from awq_edge.model.safetensors_files import read_header


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
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
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


@pytest.mark.parametrize("weights", [True, False])
def test_a_hub_model_of_another_format_alone_is_called_by_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: bool
) -> None:
    """None of its files are downloaded, so that the folder is empty or is not even there."""
    import huggingface_hub

    def download(name: str, *, allow_patterns: list[str]) -> str:
        return str(tmp_path / "nothing")

    names = ["README.md", "model-Q4_K_M.gguf", "model-Q8_0.gguf"]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name: names)
    with pytest.raises(ModelError, match=r"hub model 'a/b' holds GGUF \(model-Q4_K_M\.gguf\)"):
        resolve_model("a/b", weights=weights)


def _values(path: Path, name: str = "a") -> float:
    return float(ModelFiles(path).read(name).reshape(-1)[0])


def _write(path: Path, name: str, **values: float) -> None:
    save_file({key: np.full(3, value, np.float32) for key, value in values.items()}, path / name)


def _index(path: Path, **weight_map: str) -> None:
    text = json.dumps({"weight_map": weight_map})
    (path / "model.safetensors.index.json").write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


@pytest.mark.parametrize("other", ["model.fp16.safetensors", "a.safetensors", "z.safetensors"])
def test_model_safetensors_is_read_alone(folder: Path, other: str) -> None:
    """As transformers does, whatever lies beside it."""
    _write(folder, "model.safetensors", a=1)
    _write(folder, other, a=2, b=2)
    assert _values(folder) == 1 and list(ModelFiles(folder).entries) == ["a"]


def test_an_index_of_other_files_beside_model_safetensors_is_stale(folder: Path) -> None:
    _write(folder, "model-00001-of-00002.safetensors", a=2)
    _write(folder, "model-00002-of-00002.safetensors", b=2)
    _index(folder, a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors")
    assert _values(folder) == 2
    _write(folder, "model.safetensors", a=1)
    assert _values(folder) == 1 and list(ModelFiles(folder).entries) == ["a"]
    _index(folder, a="gone.safetensors")
    assert _values(folder) == 1


@pytest.mark.parametrize("named", ["one.safetensors", "two.safetensors"])
def test_of_shards_that_overlap_the_index_decides(folder: Path, named: str) -> None:
    _write(folder, "one.safetensors", a=1, c=5)
    _write(folder, "two.safetensors", a=2, b=3)
    _index(folder, a=named, b="two.safetensors", c="one.safetensors")
    assert _values(folder) == (1 if named == "one.safetensors" else 2)
    assert _values(folder, "b") == 3 and _values(folder, "c") == 5


def test_two_files_that_hold_one_tensor_are_named(folder: Path) -> None:
    _write(folder, "model-a.safetensors", x=0, a=1)
    _write(folder, "model-b.safetensors", a=1)
    with pytest.raises(ModelError, match=r"both model-a\.safetensors and model-b\.safetensors"):
        ModelFiles(folder)
    _index(folder, x="model-a.safetensors")  # which says nothing of `a`, nor of the other file
    assert _values(folder) == 1
    _index(folder, x="model-a.safetensors", a="model-b.safetensors")
    assert _values(folder) == 1


def test_an_index_of_tensors_that_are_not_there_is_refused(folder: Path) -> None:
    _write(folder, "one.safetensors", a=1)
    _index(folder, a="one.safetensors", b="one.safetensors")
    with pytest.raises(ModelError, match=r"says that one\.safetensors holds 'b'"):
        ModelFiles(folder)


@pytest.mark.parametrize(
    "name", ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "", "one.bin"]
)
def test_an_index_leads_to_files_beside_it_alone(folder: Path, name: str) -> None:
    _write(folder, "one.safetensors", a=1)
    _index(folder, a=name)
    with pytest.raises(ModelError, match=r"must be a \.safetensors file beside"):
        ModelFiles(folder)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_a_weight_map_is_refused(folder: Path, content: str) -> None:
    _write(folder, "one.safetensors", a=1)
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match="weight_map"):
        ModelFiles(folder)
