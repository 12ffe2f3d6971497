"""Tensors of a file against those of its checkpoint, for every architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the [gguf] extra")

from awq_edge.errors import ModelError
from awq_edge.exporter.gguf.checks import has_target
from awq_edge.model import w4a16
from awq_edge.model.archs import architectures
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.w4a16 import NumberFormat
from tests.exporter.models import save_quantized

from .conftest import SaveModel, WriteGguf, read_tensors, read_types
from .test_blocks import OFFSET_ERROR

MODEL_TYPES = [name for name in architectures() if has_target(name)]
_LLAMA = "model.layers.0"


def test_every_architecture_but_opt_is_written() -> None:
    assert set(architectures()) - set(MODEL_TYPES) == {"opt"}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_weight_is_there_once(
    model_type: str, save_model: SaveModel, write: WriteGguf
) -> None:
    """The sums of squares agree, whatever a tensor is called and whichever order its rows have."""
    path = save_model(model_type)
    tensors = read_tensors(write(path).path)
    checkpoint = Checkpoint.open(path)
    decoder = checkpoint.decoder
    dense = {name: checkpoint.dense(name).astype(np.float64) for name in decoder.weight_shapes()}
    norms = {name for name in dense if dense[name].ndim == 1 and name.endswith(".weight")}
    for name in norms:
        dense[name] = dense[name] + decoder.norm_offset
    assert len(tensors) <= len(dense)
    assert sum(t.size for t in tensors.values()) == sum(t.size for t in dense.values())
    found = sum(np.square(t, dtype=np.float64).sum() for t in tensors.values())
    expected = sum(np.square(t).sum() for t in dense.values())
    assert found == pytest.approx(expected, rel=1e-6)  # norms are added to in float32


@pytest.mark.parametrize(
    ("number_format", "gguf_type"),
    [
        (NumberFormat(4, 32, "symmetric"), "Q4_0"),
        (NumberFormat(4, 64, "asymmetric"), "Q4_1"),
        (NumberFormat(8, 32, "symmetric"), "Q8_0"),
    ],
    ids=str,
)
def test_the_file_is_the_checkpoint(
    number_format: NumberFormat,
    gguf_type: str,
    save_model: SaveModel,
    write: WriteGguf,
    tmp_path: Path,
) -> None:
    source = save_model("llama", intermediate_size=192)
    path = save_quantized(
        source,
        tmp_path / "quantized",
        number_format.group_size,
        number_format.scheme,
        bits=number_format.bits,
        layout="compressed-tensors",
    )
    copy_tokenizer(source, path)
    file = write(path).path
    tensors, types = read_tensors(file), read_types(file)
    checkpoint = Checkpoint.open(path)
    decoder = checkpoint.decoder
    order = {"attn_q": decoder.num_heads, "attn_k": decoder.num_kv_heads}
    for ours, theirs in {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }.items():
        weight = checkpoint.quantized(f"{_LLAMA}.{ours}")
        expected = w4a16.dequantize(weight)
        steps = np.repeat(weight.scales.astype(np.float32), weight.group_size, axis=1)
        if theirs in order:
            expected = neighbours(expected, order[theirs])
            steps = neighbours(steps, order[theirs])
        name = f"blk.0.{theirs}.weight"
        assert types[name] == gguf_type
        error = np.abs(tensors[name] - expected)
        limit = OFFSET_ERROR * steps if number_format.scheme == "asymmetric" else 0.0
        assert (error <= limit).all(), name
    assert types["token_embd.weight"] == types["output.weight"] == "F16"
    assert {types[name] for name in types if "norm" in name} == {"F32"}


def neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head in the order in which llama.cpp turns them: row i beside i + half of them."""
    size = len(rows) // heads
    order = [
        head * size + half * (size // 2) + pair
        for head in range(heads)
        for pair in range(size // 2)
        for half in (0, 1)
    ]
    return np.asarray(rows[order])


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_bits_of_the_output_layer(
    bits: int, tied: bool, save_model: SaveModel, write: WriteGguf
) -> None:
    """Where the embedding is the output layer, it is rounded; else it stays."""
    path = save_model("llama", tie_word_embeddings=tied)
    types = read_types(write(path, bits).path)
    rounded = {16: "F32", 8: "Q8_0", 4: "Q4_1"}[bits]
    assert types.get("output.weight") == (None if tied else rounded)
    assert types["token_embd.weight"] == (rounded if tied else "F32")


def test_an_output_layer_of_8_bits_beside_blocks_of_4(
    save_model: SaveModel, write: WriteGguf, tmp_path: Path
) -> None:
    source = save_model("llama")
    path = save_quantized(
        source,
        tmp_path / "mixed",
        layout="compressed-tensors",
        others={"lm_head": NumberFormat(8, 32, "symmetric")},
    )
    copy_tokenizer(source, path)
    file = write(path).path
    types = read_types(file)
    assert (types["output.weight"], types["blk.0.ffn_up.weight"]) == ("Q8_0", "Q4_1")
    expected = w4a16.dequantize(Checkpoint.open(path).quantized("lm_head"))
    np.testing.assert_array_equal(read_tensors(file)["output.weight"], expected)


@pytest.mark.parametrize(
    ("bits", "scheme", "reason"),
    [
        (3, "asymmetric", "no type of 3 bits"),
        (2, "symmetric", "no type of 2 bits"),
        (8, "asymmetric", "has no zero points"),
    ],
)
def test_a_format_that_gguf_lacks_is_named(
    bits: int,
    scheme: w4a16.Scheme,
    reason: str,
    save_model: SaveModel,
    write: WriteGguf,
    tmp_path: Path,
) -> None:
    source = save_model("llama")
    path = save_quantized(
        source, tmp_path / "quantized", 32, scheme, bits=bits, layout="compressed-tensors"
    )
    copy_tokenizer(source, path)
    with pytest.raises(ModelError, match=f"'{_LLAMA}.self_attn.q_proj' is quantized.*{reason}"):
        write(path)


def test_experts_of_different_types_are_named(
    save_model: SaveModel, write: WriteGguf, tmp_path: Path
) -> None:
    source = save_model("mixtral")
    other = f"{_LLAMA}.block_sparse_moe.experts.1.w2"
    path = save_quantized(
        source,
        tmp_path / "mixed",
        layout="compressed-tensors",
        others={other: NumberFormat(8, 32, "symmetric")},
    )
    copy_tokenizer(source, path)
    with pytest.raises(ModelError, match=r"experts of .* are stored in Q4_1 and Q8_0"):
        write(path)


def copy_tokenizer(source: Path, path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((source / name).read_bytes())
