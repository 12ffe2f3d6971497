"""Files: metadata, what may be overwritten, what an interrupted run leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf", reason="needs the [gguf] extra")

import awq_edge
from awq_edge import _version
from awq_edge.artifacts import outputs
from awq_edge.artifacts.gguf_header import read_gguf_header
from awq_edge.errors import ConfigError, ModelError, ResourceError
from awq_edge.exporter.gguf import tensors
from awq_edge.recipe.recipes import load_recipe
from tests.exporter.models import save_quantized

from .conftest import VOCAB, SaveModel, WriteGguf
from .test_tensors import copy_tokenizer


def keys_of(file: Path) -> dict[str, Any]:
    return read_gguf_header(file).keys


def test_metadata_of_a_llama(save_model: SaveModel, write: WriteGguf, tmp_path: Path) -> None:
    source = save_model("llama")
    path = save_quantized(source, tmp_path / "quantized", 64, "symmetric",
                          layout="compressed-tensors")  # fmt: skip
    copy_tokenizer(source, path)
    keys = keys_of(write(path).path)
    eps = keys.pop("llama.attention.layer_norm_rms_epsilon")
    assert eps == pytest.approx(2e-3)
    assert keys == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "tiny",
        "general.quantized_by": f"awq-edge {_version.__version__}",
        "general.file_type": 2,  # MOSTLY_Q4_0
        "general.quantization_version": 2,
        "awq_edge.version": _version.__version__,
        "awq_edge.method": "rtn",
        "awq_edge.format": "4-bit, group 64, symmetric",
        "llama.vocab_size": VOCAB,
        "llama.context_length": 96,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 160,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 500.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def test_metadata_beyond_llama(save_model: SaveModel, write: WriteGguf) -> None:
    gemma = keys_of(write(save_model("gemma3_text")).path)
    assert gemma["gemma3.attention.sliding_window"] == 16
    assert gemma["gemma3.rope.freq_base_swa"] == 200.0
    assert gemma["gemma3.final_logit_softcapping"] == 4.0
    granite = keys_of(write(save_model("granite"), overwrite=True).path)
    scales = [f"granite.{key}" for key in ("attention.scale", "embedding_scale", "residual_scale",
                                           "logit_scale")]  # fmt: skip
    assert [granite[key] for key in scales] == pytest.approx([0.3, 1.5, 0.6, 3.0])
    experts = keys_of(write(save_model("mixtral"), overwrite=True).path)
    assert (experts["llama.expert_count"], experts["llama.expert_used_count"]) == (4, 3)


def test_only_our_own_file_is_replaced(save_model: SaveModel, write: WriteGguf) -> None:
    path = save_model("llama")
    file = write(path).path
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="exists; choose another --gguf or give --overwrite"):
        write(path)
    write(path, overwrite=True)
    assert file.read_bytes() == before  # the same bytes again
    file.write_bytes(b"GGUF of somebody else")
    with pytest.raises(ConfigError, match="awq-edge did not write it"):
        write(path, overwrite=True)
    file.unlink()
    file.mkdir()
    with pytest.raises(ConfigError, match="is a folder; give the name of a file"):
        write(path, overwrite=True)


def test_a_folder_that_is_not_there(save_model: SaveModel, tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "x.gguf"
    awq_edge.export_gguf(save_model("llama"), file, load_recipe("cpu", method="none"))
    assert [entry.name for entry in file.parent.iterdir()] == ["x.gguf"]


def test_an_interrupted_file_leaves_nothing(
    save_model: SaveModel, write: WriteGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_model("llama")

    def fail(*_: object) -> None:
        raise ModelError("the disk is damaged")

    monkeypatch.setattr(tensors, "_as_bytes", fail)
    with pytest.raises(ModelError, match="damaged"):
        write(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_room_on_the_disk_is_asked_for(
    save_model: SaveModel, write: WriteGguf, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match=r"model.gguf of tiny needs .* another --gguf"):
        write(save_model("llama"))


def test_a_weight_that_is_not_finite(save_model: SaveModel, write: WriteGguf) -> None:
    from safetensors.numpy import load_file, save_file

    path = save_model("llama")
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"][3, 5] = float("nan")
    save_file(weights, path / "model.safetensors")
    with pytest.raises(ModelError, match=r"'lm_head.weight' has NaN or inf"):
        write(path)


def test_phi3_in_a_name_makes_llama_cpp_look_for_tokens(
    save_model: SaveModel, tmp_path: Path
) -> None:
    made = awq_edge.export_gguf(
        save_model("phi3"), tmp_path / "x.gguf", load_recipe("cpu", method="none")
    )
    assert keys_of(made.path)["general.name"] == "phi 3-model"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"context": 64}, "--context 64 is for a bundle"),
        ({"bits": 3}, "no type of 3 bits"),
        ({"bits": 2, "scheme": "symmetric"}, "no type of 2 bits"),
    ],
)
def test_options_that_a_file_cannot_have(
    options: dict[str, Any], reason: str, save_model: SaveModel, tmp_path: Path
) -> None:
    """Before anything is quantized."""
    path = save_model("llama")
    with pytest.raises(ConfigError, match=reason):
        awq_edge.export_gguf(path, tmp_path / "x.gguf", load_recipe("cpu", **options))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_model_is_quantized_on_the_way(save_model: SaveModel, tmp_path: Path) -> None:
    path = save_model("llama", max_position_embeddings=96)
    recipe = load_recipe("cpu", method="rtn", samples=2, length=16, group_size=32)
    made = awq_edge.export_gguf(path, tmp_path / "x.gguf", recipe)
    assert set(made.weights) == {"Q4_1", "Q8_0", "F16", "F32"}
    assert keys_of(made.path)["awq_edge.method"] == "rtn"
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, "x.gguf"}
