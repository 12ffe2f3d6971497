"""Checkpoints whose experts are fused, read by the names of single experts.

transformers 5 holds the experts of a layer in two tensors, and writes them so where it is told to
(`save_pretrained(..., save_original_format=False)`):

    MODULE.experts.gate_up_proj   [experts, 2 * inner, hidden]    gate rows, then up rows
    MODULE.experts.down_proj      [experts, hidden, inner]

A part of either is a range of bytes in the file, so that nothing has to be copied.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from awq_edge.archs import Decoder
from awq_edge.model_files import TensorEntry

Entries = dict[str, TensorEntry]


def split_fused_experts(entries: Mapping[str, TensorEntry], decoder: Decoder) -> Entries:
    """The entries of a model directory with those of fused experts replaced by single ones.

    Fused tensors of another shape than config.json implies stay, and are unexpected then.
    """
    found = dict(entries)
    names, moe = decoder.architecture.experts, decoder.moe
    if names is None or moe is None:
        return found
    experts, hidden, inner = moe.num_experts, decoder.hidden_size, moe.intermediate_size
    for layer in range(decoder.num_layers):
        prefix = decoder.layer_prefix(layer)
        module = f"{prefix}.{names.module}"
        router = found.pop(f"{module}.gate.weight", None)
        if router is not None:
            found[f"{prefix}.{names.router}.weight"] = router
        for fused, parts, shape in (
            ("gate_up_proj", names.mlp_in, (experts, 2 * inner, hidden)),
            ("down_proj", (names.mlp_out,), (experts, hidden, inner)),
        ):
            entry = found.get(f"{module}.experts.{fused}")
            if entry is None or entry.shape != shape:
                continue
            del found[f"{module}.experts.{fused}"]
            single = [name.format(expert=e) for e in range(experts) for name in parts]
            found |= {
                f"{prefix}.{name}.weight": part
                for name, part in zip(single, _parts(entry, len(single)), strict=True)
            }
    return dict(sorted(found.items()))


def _parts(entry: TensorEntry, count: int) -> list[TensorEntry]:
    """Equal parts of a tensor along its first two axes taken as one."""
    rows = math.prod(entry.shape[:2]) // count
    size = entry.size // count
    return [
        dataclasses.replace(
            entry,
            shape=(rows, entry.shape[2]),
            offset=entry.offset + index * size,
            size=size,
        )
        for index in range(count)
    ]
