"""The two operators in TensorRT's own layers, opset 24.

    W4A16Linear       DequantizeLinear of INT4 or INT8 groups, MatMul (Add for a bias)
    CachedAttention   RotaryEmbedding, TensorScatter, Attention with a mask of positions

Attention works through the whole buffer of the cache: what lies behind the filled positions is
multiplied by 0, and has to be finite for that. Never is_causal: ONNX settled only in 2026 where its
diagonal lies in a buffer that is longer than the queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from awq_edge.errors import ModelError
from awq_edge.exporter.graph import BATCH, SEQUENCE, DecoderGraph, GraphBuilder
from awq_edge.exporter.passes import LinearGroup, detach, linear_groups, rewrite
from awq_edge.exporter.positions import Positions
from awq_edge.exporter.sources import QuantizedWeights
from awq_edge.exporter.weights import (
    INT4,
    INT8,
    UINT8,
    Array,
    Weight,
    cast,
    concatenated,
    pack_nibbles,
    single_codes,
    unpack_nibbles,
)
from awq_edge.model.w4a16 import UInt8

_BLOCK_BYTES = 256 << 20  # of a block of transposed codes, one to a byte
_PIECE_BYTES = 32 << 20  # of what is written of it at a time


def native_linears(work: DecoderGraph, builder: GraphBuilder) -> None:
    """Every W4A16Linear becomes DequantizeLinear and MatMul; linears of one input become one."""
    groups = linear_groups(work)

    def handle(node: gs.Node) -> None:
        _native_linear(builder, groups[node.name], node)

    rewrite(work, {"W4A16Linear": handle})


def _native_linear(builder: GraphBuilder, group: LinearGroup, node: gs.Node) -> None:
    """
    codes INT4 [in, out] ──────────┐
    scales [in / group, out] ─ DequantizeLinear ─┐
    x [..., in] ────────────────────────────── MatMul ─ (Add) ─ (Split) ─ [..., out]
    """
    x, dtype, path = node.inputs[0], node.outputs[0].dtype, group.path
    outputs = [item.outputs[0] for item in group.nodes]
    detach(*group.nodes)
    sizes = [int(codes.shape[0]) for codes, _, _ in group.weights]
    shape = (*x.shape[:-1], sum(sizes))
    codes = builder.weight(transposed_codes(f"{group.module}.weight_t", group.weights, group.bits))
    scales = builder.weight(_transposed_scales(f"{group.module}.scales_t", group.weights, dtype))
    (weight,) = builder.node(
        "DequantizeLinear",
        f"{path}/DequantizeLinear",
        [codes, scales],
        [(dtype, codes.shape)],
        {"axis": 0, "block_size": group.group_size},
    )
    total = outputs[0] if len(outputs) == 1 else builder.variable(f"{path}/output_0", dtype, shape)
    bias = group.bias
    product = total if bias is None else builder.variable(f"{path}/product", dtype, shape)
    builder.node("MatMul", f"{path}/MatMul", [x, weight], [product])
    if bias is not None:
        builder.node("Add", f"{path}/Add", [product, builder.weight(bias)], [total])
    if len(outputs) > 1:
        split = builder.inline(f"merged.{'+'.join(map(str, sizes))}", sizes)
        builder.node("Split", f"{path}/Split", [total, split], outputs, {"axis": -1})


def transposed_codes(name: str, parts: tuple[QuantizedWeights, ...], bits: int) -> Weight:
    """Codes [out, in] of linears one below the other as signed numbers [in, out], zero point 0.

    INT4 for up to 4 bits, two to a byte, the first in the low nibble; INT8 for 8. A block of
    channels is in memory while it is evaluated; a weight of more than one is read repeatedly.
    Evaluation raises ModelError for zero points that are not 2**(bits-1).
    """
    first, middle = parts[0][0], np.uint8(2 ** (bits - 1))
    columns, rows = first.shape[1], sum(codes.shape[0] for codes, _, _ in parts)
    wide = first.dtype == UINT8

    def pieces() -> Iterator[Array]:
        for part in parts:
            _require_symmetric(part, int(middle))
        step = max(2, _BLOCK_BYTES // rows // 2 * 2)
        for begin in range(0, columns, step):
            block = _transposed_block(parts, begin, min(begin + step, columns), rows)
            block -= middle  # modulo 256
            step_within = max(2, _PIECE_BYTES // rows // 2 * 2)
            for start in range(0, len(block), step_within):
                signed = block[start : start + step_within]
                yield signed if wide else pack_nibbles((signed & 15).reshape(-1))

    dtype = INT8 if wide else INT4
    return replace(first, name=name, dtype=dtype, shape=(columns, rows), pieces=pieces)


def _transposed_block(
    parts: tuple[QuantizedWeights, ...], begin: int, end: int, rows: int
) -> UInt8:
    """Channels begin..end of all rows, one code to a byte: uint8 [end - begin, rows]."""
    block, row = np.empty((end - begin, rows), np.uint8), 0
    for codes, _, _ in parts:
        columns = codes.shape[1]
        for piece in codes.pieces():
            if codes.dtype == UINT8:
                channels = piece.reshape(-1, columns)[:, begin:end]
            else:
                packed = piece.reshape(-1, columns // 2)[:, begin // 2 : (end + 1) // 2]
                channels = unpack_nibbles(packed, end - begin)
            block[:, row : row + len(channels)] = channels.T
            row += len(channels)
    return block


def _transposed_scales(name: str, parts: tuple[QuantizedWeights, ...], dtype: int) -> Weight:
    """[out, in / group] as [in / group, out], in the activations' type."""
    scales = cast(concatenated(name, [part[1] for part in parts]), dtype)
    rows, columns = scales.shape
    return replace(
        scales,
        shape=(columns, rows),
        pieces=lambda: iter([np.ascontiguousarray(scales.array().T)]),
    )


def _require_symmetric(part: QuantizedWeights, middle: int) -> None:
    codes, _, zeros = part
    if zeros is not None and (single_codes(zeros).array() != middle).any():
        raise ModelError(
            f"{codes.name}: has zero points other than {middle}, though its checkpoint says "
            "symmetric; TensorRT's DequantizeLinear has none: export with --linear plugin"
        )


class NativeAttention:
    """CachedAttention without a soft cap, which TensorRT's Attention does not have."""

    def __init__(self, work: DecoderGraph, builder: GraphBuilder, positions: Positions) -> None:
        self._work = work
        self._builder = builder
        self._positions = positions

    def lower(self, node: gs.Node) -> None:
        """
        q ─ RotaryEmbedding ─ heads ─────────────────────────┐
        k ─ RotaryEmbedding ─ heads ─ TensorScatter(past_key) ─┬─ Attention ─ [B, S, heads * size]
        v ─ heads ─ TensorScatter(past_value) ───────────┬─────│
                                         present_value ──┘     └─ present_key
        """
        q, k, v, _, cosine, sine, past_key, past_value = list(node.inputs)
        y, present_key, present_value = list(node.outputs)
        attributes, path = node.attrs, node.name.rpartition("/")[0]
        detach(node)
        heads, kv_heads = attributes["num_heads"], attributes["num_kv_heads"]
        size = attributes["head_size"]
        if attributes["rotary_size"]:
            tables = [self._table(cosine, q.dtype), self._table(sine, q.dtype)]
            q = self._rotated(f"{path}/q_rotary", q, tables, heads, attributes)
            k = self._rotated(f"{path}/k_rotary", k, tables, kv_heads, attributes)
        q = by_heads(self._builder, f"{path}/q_heads", q, heads, size)
        k = by_heads(self._builder, f"{path}/k_heads", k, kv_heads, size)
        v = by_heads(self._builder, f"{path}/v_heads", v, kv_heads, size)
        self._append(f"{path}/key", past_key, k, present_key)
        self._append(f"{path}/value", past_value, v, present_value)
        mask = self._positions.mask(attributes.get("window", 0))
        (attended,) = self._builder.node(
            "Attention",
            f"{path}/Attention",
            [q, present_key, present_value, mask],
            [(y.dtype, (BATCH, heads, SEQUENCE, size))],
            {"scale": attributes["scale"]},
        )
        joined(self._builder, f"{path}/y_heads", attended, y)

    def _append(
        self, path: str, past: gs.Variable, update: gs.Variable, present: gs.Variable
    ) -> None:
        inputs = [past, update, self._positions.past_length]
        self._builder.node(
            "TensorScatter",
            f"{path}/TensorScatter",
            inputs,
            [present],
            {"axis": 2, "mode": "linear"},
        )

    def _rotated(
        self,
        path: str,
        x: gs.Variable,
        tables: list[gs.Constant],
        heads: int,
        attributes: dict[str, int],
    ) -> gs.Variable:
        """Rotary embedding of x [B, S, heads * head_size]."""
        rotation = {"num_heads": heads, "interleaved": 0}
        if attributes["rotary_size"] != attributes["head_size"]:
            rotation["rotary_embedding_dim"] = attributes["rotary_size"]
        (rotated,) = self._builder.node(
            "RotaryEmbedding",
            f"{path}/RotaryEmbedding",
            [x, *tables, self._positions.ids()],
            [(x.dtype, x.shape)],
            rotation,
        )
        return rotated

    def _table(self, table: gs.Constant, dtype: int) -> gs.Constant:
        """A rotary table in the activations' type, which the operator asks for."""
        return self._builder.weight(cast(self._work.weights[table.name], dtype))


def by_heads(
    builder: GraphBuilder, path: str, x: gs.Variable, heads: int, size: int
) -> gs.Variable:
    """[B, S, heads * size] ─ Reshape ─ Transpose ─ [B, heads, S, size]"""
    shape = builder.inline(f"heads.{heads}x{size}", [0, 0, heads, size])
    (apart,) = builder.node(
        "Reshape", f"{path}/Reshape", [x, shape], [(x.dtype, (BATCH, SEQUENCE, heads, size))]
    )
    (transposed,) = builder.node(
        "Transpose",
        f"{path}/Transpose",
        [apart],
        [(x.dtype, (BATCH, heads, SEQUENCE, size))],
        {"perm": [0, 2, 1, 3]},
    )
    return transposed


def joined(builder: GraphBuilder, path: str, x: gs.Variable, y: gs.Variable) -> None:
    """[B, heads, S, size] ─ Transpose ─ Reshape ─ y [B, S, heads * size]"""
    _, heads, _, size = x.shape
    (turned,) = builder.node(
        "Transpose",
        f"{path}/Transpose",
        [x],
        [(x.dtype, (BATCH, SEQUENCE, heads, size))],
        {"perm": [0, 2, 1, 3]},
    )
    shape = builder.inline(f"heads.{heads * size}", [0, 0, heads * size])
    builder.node("Reshape", f"{path}/Reshape", [turned, shape], [y])
