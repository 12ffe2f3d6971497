"""Experts under other names, or fused, read by the names of single experts.

transformers 5 has the experts of a layer in two tensors, and writes them so where it is told to
(`save_pretrained(..., save_original_format=False)`):

    MODULE.experts.gate_up_proj   [experts, 2 * inner, hidden]    gate rows, then up rows
    MODULE.experts.down_proj      [experts, hidden, inner]

llm-compressor packs them as single linears, MODULE.experts.E.gate_proj and so on, or puts those of
a layer one upon the other again (MODULE.experts.gate_up_proj.weight_packed, weight_scale, ...). A
part of a fused tensor is a range of bytes in the file, so that nothing has to be copied.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

from awq_edge.errors import ModelError
from awq_edge.model.archs import Decoder, Experts
from awq_edge.model.safetensors_files import TensorEntry

Entries = dict[str, TensorEntry]

# Tensors of a fused projection -> those of a single expert: unquantized, and packed.
_SUFFIXES = {
    "": "weight",
    **{
        f"{joint}{name}": f"weight_{name}"
        for joint in (".weight_", "_")
        for name in ("packed", "scale", "zero_point", "shape")
    },
}


def split_fused_experts(entries: Mapping[str, TensorEntry], decoder: Decoder) -> Entries:
    """The entries of a model directory by the names that experts and routers have on disk.

    Fused tensors of another shape than config.json implies stay, and are unexpected then. Raises
    ModelError where a tensor is there under two names.
    """
    names, moe = decoder.architecture.experts, decoder.moe
    if names is None or moe is None:
        return dict(entries)
    renamed: Entries = {}
    rename = _Rename(names, decoder.architecture.layers)
    for name, entry in entries.items():
        for own, part in _split(rename(name), entry, names, decoder):
            if own in renamed:
                raise ModelError(f"weight '{own}' is there twice, also as '{name}'")
            renamed[own] = part
    return dict(sorted(renamed.items()))


def names_in_memory(linear: str, decoder: Decoder) -> tuple[str, ...]:
    """Full names of a linear or router in transformers' class, or in a tool that works on it:
    the names that lists of targets may have."""
    arch = decoder.architecture
    in_memory = [linear]
    if arch.vision is not None:
        in_memory.append(arch.vision.name_in_memory(linear))
    names = arch.experts
    if names is not None:
        for name in tuple(in_memory):
            head, layer, rest = _block_parts(name)
            if rest == names.router:
                in_memory.append(f"{head}{layer}.{names.module}.gate")
            for template, own, fused in _templates(names):
                match = re.fullmatch(_pattern(template), rest)
                if match is not None:
                    module = f"{head}{layer}.{names.module}.experts"
                    in_memory += [
                        f"{module}.{match[1]}.{own}",
                        f"{module}.{match[1]}.{template.rpartition('.')[2]}",
                        f"{module}.{fused}",
                    ]
    return tuple(dict.fromkeys(in_memory))


def _templates(names: Experts) -> tuple[tuple[str, str, str], ...]:
    """Names of gate, up and down: on disk, of a single linear, and of the fused tensor."""
    gate, up = names.mlp_in
    return (
        (gate, "gate_proj", "gate_up_proj"),
        (up, "up_proj", "gate_up_proj"),
        (names.mlp_out, "down_proj", "down_proj"),
    )


def _pattern(template: str) -> str:
    return re.escape(template).replace(re.escape("{expert}"), "([0-9]+)")


def _block_parts(name: str) -> tuple[str, str, str]:
    """ "model.layers.", "3" and "mlp.gate" of "model.layers.3.mlp.gate"."""
    match = re.fullmatch(r"(.*\blayers\.)([0-9]+)\.(.*)", name)
    return ("", "", "") if match is None else (match[1], match[2], match[3])


class _Rename:
    """Names of tensors of experts and routers, as they are on disk."""

    def __init__(self, names: Experts, layers: str) -> None:
        container = names.mlp_in[0].partition(".{expert}")[0]
        modules = "|".join(map(re.escape, {f"{names.module}.experts", container}))
        single: dict[str, str] = {}
        for template, own, _ in _templates(names):
            single |= {own: template, template.rpartition(".")[2]: template}
        self._single, self._router = single, names.router
        block = rf"({re.escape(layers)}\.[0-9]+)\."
        own = "|".join(map(re.escape, single))
        self._expert = re.compile(rf"{block}(?:{modules})\.([0-9]+)\.({own})\.(.+)")
        self._fused = re.compile(rf"{block}(?:{modules})\.((?:gate_up_proj|down_proj).*)")
        self._gate = re.compile(rf"{block}{re.escape(names.module)}\.gate\.(.+)")
        self._module = names.module

    def __call__(self, name: str) -> str:
        if match := self._expert.fullmatch(name):
            return f"{match[1]}.{self._single[match[3]].format(expert=match[2])}.{match[4]}"
        if match := self._gate.fullmatch(name):
            return f"{match[1]}.{self._router}.{match[2]}"
        if match := self._fused.fullmatch(name):
            return f"{match[1]}.{self._module}.experts.{match[2]}"
        return name


def _split(
    name: str, entry: TensorEntry, names: Experts, decoder: Decoder
) -> Iterator[tuple[str, TensorEntry]]:
    """A tensor of fused experts as tensors of single ones; another as it is."""
    assert decoder.moe is not None
    experts, inner = decoder.moe.num_experts, decoder.moe.intermediate_size
    prefix, _, rest = name.partition(f".{names.module}.experts.")
    for fused, templates, shape in (
        ("gate_up_proj", names.mlp_in, (experts, 2 * inner, decoder.hidden_size)),
        ("down_proj", (names.mlp_out,), (experts, decoder.hidden_size, inner)),
    ):
        suffix = rest.removeprefix(fused)
        if not rest.startswith(fused) or suffix not in _SUFFIXES:
            continue
        of_dense = not suffix and entry.shape != shape
        if of_dense or len(entry.shape) < 2 or entry.shape[0] != experts:
            continue
        single = [template.format(expert=e) for e in range(experts) for template in templates]
        if math.prod(entry.shape[:2]) % len(single):
            continue
        parts = _parts(entry, len(single))
        for own, part in zip(single, parts, strict=True):
            yield f"{prefix}.{own}.{_SUFFIXES[suffix]}", part
        return
    yield name, entry


def _parts(entry: TensorEntry, count: int) -> list[TensorEntry]:
    """Equal parts of a tensor along its first two axes taken as one."""
    rows = math.prod(entry.shape[:2]) // count
    size = entry.size // count
    return [
        dataclasses.replace(
            entry,
            shape=(rows, *entry.shape[2:]),
            offset=entry.offset + index * size,
            size=size,
        )
        for index in range(count)
    ]
