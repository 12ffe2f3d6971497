"""Weights: packing against golden bytes and a second implementation, conversions, bad values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.utils
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from awq_edge.errors import ModelError
from awq_edge.exporter.checkpoint_sources import CheckpointSources
from awq_edge.model import w4a16
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.layouts import awq_gemm
from awq_edge.program.program import Embedding, Linear, Quantized, Tensor
from awq_edge.program.weights import (
    Dtype,
    rows_packed,
    single_codes,
)

from .conftest import Export
from .models import save_quantized, save_random_model


def matmul_nbits_bytes(codes: np.ndarray, group_size: int) -> np.ndarray:
    """B of MatMulNBits as its documentation words it, code by code: uint8 [N, K/group, group/2]."""
    n, k = codes.shape
    packed = np.zeros((n, k // group_size, group_size // 2), np.uint8)
    for row in range(n):
        for column in range(k):
            group, place = divmod(column, group_size)
            shift = 4 if place % 2 else 0
            packed[row, group, place // 2] |= int(codes[row, column]) << shift
    return packed


def test_golden_bytes() -> None:
    """Eight output and four input channels, by hand: byte = code of 2j + 16 x code of 2j + 1."""
    codes = np.arange(32, dtype=np.uint8).reshape(8, 4) % 16
    expected = "10 32 54 76 98 ba dc fe 10 32 54 76 98 ba dc fe"
    assert awq_gemm.repack_gemm(awq_gemm.pack_gemm(codes)).tobytes().hex(" ") == expected


@settings(max_examples=30, deadline=None)
@given(words=st.integers(1, 5), pairs=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_repacking_equals_a_second_implementation(words: int, pairs: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 16, (8 * words, 2 * pairs), dtype=np.uint8)
    expected = matmul_nbits_bytes(codes, 2 * pairs)[:, 0]
    np.testing.assert_array_equal(awq_gemm.repack_gemm(awq_gemm.pack_gemm(codes)), expected)


def test_every_nibble_of_a_word_arrives() -> None:
    """One code at a time: a lane that is mixed up with another cannot hide."""
    for channel in range(8):
        for row in range(2):
            codes = np.zeros((8, 2), np.uint8)
            codes[channel, row] = 15
            found = awq_gemm.repack_gemm(awq_gemm.pack_gemm(codes))
            assert found[channel, 0] == 15 << (4 * row)
            assert np.count_nonzero(found) == 1


def extreme_weight(out_features: int, in_features: int) -> np.ndarray:
    """Groups that are all positive, all negative, zero, tiny, and with an outlier."""
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(out_features, in_features)).astype(np.float32)
    weight[0] = np.abs(weight[0])  # zero point 0
    weight[1] = -np.abs(weight[1])  # zero point 15
    weight[2] = 0
    weight[3] *= 1e-7
    weight[4, ::7] = 1e3
    return weight


@pytest.mark.parametrize("group_size", [32, 64])
def test_onnxruntime_recovers_every_weight(group_size: int, tmp_path: Path, export: Export) -> None:
    """Unit vectors through the bundle's own MatMulNBits node give the dequantized weight, exactly.

    down_proj alone reads its input, so the node is not merged with others.
    """
    source = save_random_model(tmp_path / "model", "llama", intermediate_size=192)
    file, name = source / "model.safetensors", "model.layers.1.mlp.down_proj"
    tensors = load_file(file)
    tensors[f"{name}.weight"] = extreme_weight(64, 192)
    save_file(tensors, file, metadata={"format": "pt"})
    checkpoint = save_quantized(source, tmp_path / "checkpoint", group_size)
    bundle = export(checkpoint)
    model = onnx.load(bundle.path / "model.onnx")
    (node,) = [n for n in model.graph.node if n.name == "/model/layers.1/mlp/down_proj/MatMulNBits"]
    part = onnx.utils.Extractor(model).extract_model([node.input[0]], list(node.output))
    session = onnxruntime.InferenceSession(part.SerializeToString())
    expected = w4a16.dequantize(Checkpoint.open(checkpoint).quantized(name))
    (found,) = session.run(None, {node.input[0]: np.eye(192, dtype=np.float32)[None]})
    np.testing.assert_array_equal(found[0].T, expected)


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_pieces_join_to_the_tensor(rows: int, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the pieces are, dense, transposed and rounded tensors are the same."""
    name = "model.layers.0.mlp.down_proj.weight"
    checkpoint = Checkpoint.open(llama)
    expected = checkpoint.dense(name)
    monkeypatch.setattr(
        "awq_edge.exporter.checkpoint_sources._PIECE_BYTES", rows * 4 * expected.shape[1]
    )
    monkeypatch.setattr(
        "awq_edge.exporter.checkpoint_sources._TRANSPOSED_BYTES", rows * 4 * len(expected)
    )
    sources = CheckpointSources(checkpoint)
    tensor = Tensor(name, expected.shape, "blocks")
    dense = sources.dense(tensor, "float32")
    assert len(list(dense.pieces())) == -(-len(expected) // rows)
    np.testing.assert_array_equal(dense.array(), expected)
    transposed = sources.transposed(tensor, "x", "float32")
    np.testing.assert_array_equal(transposed.array(), expected.T)
    quantized = w4a16.quantize(expected, 4, 32, "asymmetric")
    number_format = w4a16.NumberFormat(4, 32, "asymmetric")
    stored = Quantized(number_format, has_zeros=True)
    rows_, columns = expected.shape
    linear = Linear("x", name, columns, rows_, None, "blocks", stored, is_rounded=True)
    codes, scales, zeros = sources.quantized(linear)
    np.testing.assert_array_equal(scales.array(), quantized.scales)  # before the codes, too
    np.testing.assert_array_equal(codes.array(), matmul_nbits_bytes(quantized.codes, 160).ravel())
    assert zeros is not None
    packed = rows_packed(single_codes(zeros), 4).array()
    np.testing.assert_array_equal(packed[:, 0] & 15, quantized.zeros[:, 0])


def set_tensor(path: Path, name: str, change: object) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = np.asarray(change(tensors[name]))  # type: ignore[operator]
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"]
)
def test_values_that_are_not_finite_are_named(
    name: str, bad: float, tmp_path: Path, export: Export
) -> None:
    source = save_random_model(tmp_path / "model", "llama")

    def spoil(values: np.ndarray) -> np.ndarray:
        values.reshape(-1)[-1] = bad
        return values

    set_tensor(source, name, spoil)
    with pytest.raises(ModelError, match=rf"weight '{name}' has NaN or inf"):
        export(source)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_scales_that_are_not_finite_are_named(llama: Path, tmp_path: Path, export: Export) -> None:
    checkpoint = save_quantized(llama, tmp_path / "checkpoint")
    name = "model.layers.0.self_attn.o_proj.scales"
    set_tensor(checkpoint, name, lambda values: values * np.float16(np.nan))
    with pytest.raises(ModelError, match=rf"weight '{name}' has NaN or inf"):
        export(checkpoint)


def test_values_beyond_float16_are_named(tmp_path: Path, export: Export) -> None:
    from .conftest import parity_recipe

    source = save_random_model(tmp_path / "model", "llama")
    set_tensor(source, "model.norm.weight", lambda values: values * np.float32(1e5))
    with pytest.raises(
        ModelError, match=r"'model\.norm\.weight' has values up to 1\.\d+e\+05, whi"
    ):
        export(source, parity_recipe(**{"runtime.activation_dtype": "float16"}))
    export(source)  # float32 holds them


@pytest.mark.parametrize(
    ("kind", "largest", "exact", "expected"),
    [
        ("F16", 1.0, True, "float16"),
        ("F32", 1.0, True, "float32"),
        ("F32", 1.0, False, "float16"),
        ("F32", 1e6, False, "float32"),
        ("BF16", 1.0, True, "float16"),
        ("BF16", 1e6, True, "float32"),
    ],
)
def test_the_type_of_the_embedding(
    kind: str, largest: float, exact: bool, expected: Dtype, llama: Path, tmp_path: Path
) -> None:
    """float16 unless that would lose something; bfloat16 has its range, not its precision."""
    import ml_dtypes

    dtype = {"F16": np.float16, "F32": np.float32, "BF16": ml_dtypes.bfloat16}[kind]
    name = "model.embed_tokens.weight"
    tensors = load_file(llama / "model.safetensors")
    values = tensors[name] / np.abs(tensors[name]).max() * largest
    save_file(tensors | {name: values.astype(dtype)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.files.entries[name].dtype == kind
    sources = CheckpointSources(checkpoint)
    table = Tensor(name, values.shape, "embedding")
    embedding = Embedding(table, 1.0, None, None, 0, exact=exact)
    assert sources.embedding_dtype(embedding, "float32" if exact else "float16") == expected
    stored = sources.dense(table, expected).array()
    np.testing.assert_allclose(
        stored, values.astype(dtype).astype(np.float32), rtol=1e-3, atol=1e-7
    )
