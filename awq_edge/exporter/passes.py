"""Passes over a graph, and groups of linears: the TensorRT lowerings are made of them.

A pass walks the nodes in order; those that it has no handler for stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import DecoderGraph
from awq_edge.exporter.sources import QuantizedWeights
from awq_edge.exporter.weights import Weight, concatenated

Handler = Callable[[gs.Node], None]


def rewrite(work: DecoderGraph, handlers: Mapping[str, Handler]) -> None:
    """Replace nodes of `work` by the nodes that the handler of their operator appends to it.

    A handler that takes other nodes of the graph with it detaches them: detached ones are dropped.
    """
    nodes = list(work.graph.nodes)
    work.graph.nodes.clear()
    for node in nodes:
        if not node.outputs:
            continue  # detached
        handler = handlers.get(node.op)
        if handler is None:
            work.graph.nodes.append(node)
        else:
            handler(node)


def detach(*nodes: gs.Node) -> None:
    """Take nodes out of their tensors, which others are going to produce and read."""
    for node in nodes:
        node.inputs.clear()
        node.outputs.clear()


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes a tensor; None for inputs and constants."""
    return tensor.inputs[0] if len(tensor.inputs) == 1 else None


@dataclass(frozen=True)
class LinearGroup:
    """W4A16Linear nodes of one input and one format that become one linear.

    path, module: of the merged node and weight. silu: the nodes Sigmoid, Mul and Mul that make
    silu(first) * second, where there are two linears and nothing else reads them.
    """

    nodes: tuple[gs.Node, ...]
    path: str
    module: str
    weights: tuple[QuantizedWeights, ...]
    biases: tuple[Weight, ...]
    silu: tuple[gs.Node, gs.Node, gs.Node] | None

    @property
    def bits(self) -> int:
        return int(self.nodes[0].attrs["bits"])

    @property
    def group_size(self) -> int:
        return int(self.nodes[0].attrs["group_size"])

    @property
    def bias(self) -> Weight | None:
        return concatenated(f"{self.module}.bias", self.biases) if self.biases else None


def linear_groups(work: DecoderGraph) -> dict[str, LinearGroup]:
    """The groups by the name of each node in them.

    Merged are linears of one module (q, k and v; gate and up) that read one tensor in the same
    bits and groups, all of them with a bias or none.
    """
    groups: dict[tuple[object, ...], list[gs.Node]] = {}
    for node in work.graph.nodes:
        if node.op == "W4A16Linear":
            parent = node.name.rsplit("/", 2)[0]
            key = (node.inputs[0].name, parent, node.attrs["bits"], node.attrs["group_size"],
                   _bias(node) is None)  # fmt: skip
            groups.setdefault(key, []).append(node)
    made = (_group(work, nodes) for nodes in groups.values())
    return {node.name: group for group in made for node in group.nodes}


def _group(work: DecoderGraph, nodes: Sequence[gs.Node]) -> LinearGroup:
    paths = [node.name.rpartition("/")[0] for node in nodes]
    parent = paths[0].rpartition("/")[0]
    path = f"{parent}/{'+'.join(path.rpartition('/')[2] for path in paths)}"
    biases = [bias for bias in map(_bias, nodes) if bias is not None]
    return LinearGroup(
        nodes=tuple(nodes),
        path=path,
        module=path.removeprefix("/").replace("/", "."),
        weights=tuple(_weights(work, node) for node in nodes),
        biases=tuple(work.weights[bias.name] for bias in biases),
        silu=_silu(*nodes) if len(nodes) == 2 else None,
    )


def _weights(work: DecoderGraph, node: gs.Node) -> QuantizedWeights:
    codes, scales, *others = node.inputs[1:]
    zeros = others[0] if others and not others[0].is_empty() else None
    return (
        work.weights[codes.name],
        work.weights[scales.name],
        None if zeros is None else work.weights[zeros.name],
    )


def _bias(node: gs.Node) -> gs.Constant | None:
    return node.inputs[4] if len(node.inputs) > 4 else None


def _silu(gate: gs.Node, up: gs.Node) -> tuple[gs.Node, gs.Node, gs.Node] | None:
    """gate ─┬─ Sigmoid ─ Mul ─┐
             └─────────── ┘    Mul
    up ────────────────────────┘
    """
    gate_out, up_out = gate.outputs[0], up.outputs[0]
    readers = {node.op: node for node in gate_out.outputs}
    if len(gate_out.outputs) != 2 or set(readers) != {"Sigmoid", "Mul"}:
        return None
    sigmoid, multiply = readers["Sigmoid"], readers["Mul"]
    if not _read_only_by(sigmoid.outputs[0], multiply) or not up_out.outputs:
        return None
    product = up_out.outputs[0]
    is_gated = _read_only_by(up_out, product) and _read_only_by(multiply.outputs[0], product)
    return (sigmoid, multiply, product) if is_gated and product.op == "Mul" else None


def _read_only_by(tensor: gs.Tensor, node: gs.Node) -> bool:
    return len(tensor.outputs) == 1 and tensor.outputs[0] is node
