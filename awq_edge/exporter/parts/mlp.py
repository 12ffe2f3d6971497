"""The MLP of a block, with a gate or without, and activations."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import module_path
from awq_edge.exporter.parts.building import Building, parent_of
from awq_edge.exporter.parts.linears import block_linear, block_linears

# Gelu's attribute `approximate`, by the activation's name in config.json.
_GELU = {"gelu_pytorch_tanh": "tanh", "gelu": "none"}


def mlp(building: Building, layer: int, x: gs.Variable) -> gs.Variable:
    """The MLP of one block, [B, S, hidden].

        ┌─ gate_proj ─ activation ─┐
    x ──┤                         Mul ─ down_proj      or      x ─ fc1 ─ activation ─ fc2
        └─ up_proj ────────────────┘
    """
    decoder, arch = building.decoder, building.arch
    inner = decoder.intermediate_size
    path = module_path(parent_of(decoder.layer_prefix(layer), arch.mlp_out))
    sizes = (inner, inner) if arch.gated else (inner,)
    gate, *up = block_linears(building, layer, arch.mlp_in, x, sizes)
    result = activated(building, path, gate)
    if up:
        result = building.op(f"{path}/Mul", [result, up[0]], gate.shape)
    return block_linear(building, layer, arch.mlp_out, result)


def activated(building: Building, path: str, x: gs.Variable) -> gs.Variable:
    """The activation of the MLP; SiLU as Sigmoid and Mul, which every runtime has."""
    kind, path = building.decoder.activation, f"{path}/activation"
    if kind == "silu":
        sigmoid = building.op(f"{path}/Sigmoid", [x], x.shape)
        return building.op(f"{path}/Mul", [x, sigmoid], x.shape)
    if kind == "relu":
        return building.op(f"{path}/Relu", [x], x.shape)
    return building.op(f"{path}/Gelu", [x], x.shape, {"approximate": _GELU[kind]})
