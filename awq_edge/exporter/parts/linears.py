"""Linears: W4A16Linear where the checkpoint has one quantized, else MatMul."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import module_path
from awq_edge.exporter.parts.building import Building
from awq_edge.exporter.sources import QuantizedWeights
from awq_edge.exporter.weights import Part
from awq_edge.tensorrt.contract import DOMAIN

# layout_version of a W4A16Linear whose weights are as docs/graph.md says; lowerings that repack
# them for their kernels count from 1.
LOGICAL_LAYOUT = 0


def block_linear(
    building: Building, layer: int, name: str, x: gs.Variable, read_share: float = 1.0
) -> gs.Variable:
    """x W^T (+ b) [..., out] of a linear of a block.

    name: relative to the block. read_share: the share of tokens that reads it (experts).
    """
    builder, sources, checkpoint = building.builder, building.sources, building.checkpoint
    linear = building.linear(layer, name)
    full = f"{building.decoder.layer_prefix(layer)}.{name}"
    output = builder.variable(
        f"{module_path(full)}/output_0", building.dtype, (*x.shape[:-1], linear.out_features)
    )
    bias = None
    if linear.bias:
        source = f"{full}.bias"
        bias = builder.weight(sources.dense(source, source, building.dtype, "blocks"))
    if not checkpoint.is_quantized(full):
        matmul(building, full, f"{full}.weight", x, "blocks", output, bias, read_share)
        return output
    codes, scales, zeros = (
        None if weight is None else replace(weight, read_share=read_share)
        for weight in sources.quantized(full, "blocks")
    )
    assert codes is not None and scales is not None
    bits = checkpoint.linear_format(full).bits
    w4a16(building, full, x, (codes, scales, zeros), bits, output, bias)
    return output


def block_linears(
    building: Building, layer: int, names: Sequence[str], x: gs.Variable, sizes: Sequence[int]
) -> list[gs.Variable]:
    """Linears that read one input, or the one that they are fused into:

    x ─┬─ q_proj                         ┌─ q
       ├─ k_proj    or    x ─ qkv_proj ─ Split ─ k
       └─ v_proj                         └─ v

    sizes: their channels.
    """
    if len(names) == len(sizes):
        return [block_linear(building, layer, name, x) for name in names]
    (name,) = names
    fused = block_linear(building, layer, name, x)
    builder, path = building.builder, module_path(f"{building.decoder.layer_prefix(layer)}.{name}")
    split = builder.inline(f"split.{'+'.join(map(str, sizes))}", list(sizes))
    outputs = [(building.dtype, (*x.shape[:-1], size)) for size in sizes]
    return builder.node("Split", f"{path}/Split", [fused, split], outputs, {"axis": -1})


def w4a16(
    building: Building,
    module: str,
    x: gs.Variable,
    weights: QuantizedWeights,
    bits: int,
    output: gs.Variable,
    bias: gs.Constant | None = None,
) -> None:
    """A quantized linear: awq_edge::W4A16Linear. module: full name."""
    codes, scales, _ = weights
    out_features, in_features = codes.shape
    attributes = {
        "bits": bits,
        "group_size": in_features // scales.shape[1],
        "in_features": in_features,
        "out_features": out_features,
        "layout_version": LOGICAL_LAYOUT,
    }
    builder = building.builder
    tensors = [None if weight is None else builder.weight(weight) for weight in weights]
    path = f"{module_path(module)}/W4A16Linear"
    builder.node("W4A16Linear", path, [x, *tensors, bias], [output], attributes, DOMAIN)


def matmul(
    building: Building,
    module: str,
    source: str,
    x: gs.Variable,
    part: Part,
    output: gs.Variable,
    bias: gs.Constant | None = None,
    read_share: float = 1.0,
) -> None:
    """An unquantized linear: x ─ MatMul(W^T) ─ (Add(bias)). source: the tensor's full name."""
    path, builder, dtype = module_path(module), building.builder, building.dtype
    weight = building.sources.transposed(source, f"{module}.weight_t", dtype, part)
    inputs = [x, builder.weight(replace(weight, read_share=read_share))]
    if bias is None:
        builder.node("MatMul", f"{path}/MatMul", inputs, [output])
        return
    product = building.op(f"{path}/MatMul", inputs, output.shape)
    builder.node("Add", f"{path}/Add", [product, bias], [output])
