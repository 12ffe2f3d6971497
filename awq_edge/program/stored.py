"""Linears as a runtime stores them: tensors by the names that its operator has for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from awq_edge.program.program import Linear, LinearGroup, Tensor
from awq_edge.program.sources import Sources
from awq_edge.program.weights import Dtype, Weight, concatenated


@dataclass(frozen=True)
class StoredLinear:
    """Linears of one input, one below the other.

    name: of the module: "model.layers.0.self_attn.q_proj+k_proj". places: of the linears in their
    group. bits: of a code's container; None for unquantized. group_size: channels that share a
    scale in it. tensors: by their roles, in the order of the file. scale_groups: scales that a
    session keeps copies of. gate_up: rows are woven from gate's and up's.
    """

    name: str
    linears: tuple[Linear, ...]
    places: tuple[int, ...]
    tensors: Mapping[str, Weight]
    bits: int | None = None
    group_size: int = 0
    scale_groups: int = 0
    gate_up: bool = False

    @property
    def in_features(self) -> int:
        return self.linears[0].in_features

    @property
    def out_features(self) -> int:
        return sum(linear.out_features for linear in self.linears)


def module_of(linears: Sequence[Linear]) -> str:
    """The name of linears of one module that become one."""
    parent = linears[0].name.rpartition(".")[0]
    last = "+".join(linear.name.rpartition(".")[2] for linear in linears)
    return f"{parent}.{last}" if parent else last


def bias_of(linears: Sequence[Linear], sources: Sources, dtype: Dtype) -> Weight | None:
    """The biases of linears that become one, which have one each or none."""
    biases = [sources.dense(each.bias, dtype) for each in linears if each.bias is not None]
    if len(biases) < 2:
        return biases[0] if biases else None
    return concatenated(f"{module_of(linears)}.bias", biases)


def dense_tensor(linear: Linear) -> Tensor:
    """The weight of an unquantized linear in the checkpoint."""
    return Tensor(linear.source, (linear.out_features, linear.in_features), linear.part)


def parts_of(group: LinearGroup) -> list[tuple[tuple[int, ...], tuple[Linear, ...]]]:
    """The linears that become one, with their places in the group."""
    return [(places, tuple(group.linears[place] for place in places)) for places in group.merged()]
