"""Reading a checkpoint: a Hugging Face model, unquantized or in one of `awq_edge.model.layouts`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.errors import ModelError
from awq_edge.model.archs import Decoder, Linear, decoder_from_config
from awq_edge.model.files import ModelFiles
from awq_edge.model.foreign_formats import refuse_foreign
from awq_edge.model.fused_experts import names_in_memory, split_fused_experts
from awq_edge.model.layouts import Layout, StoredConfig, layout_of_config, quantization_config
from awq_edge.model.layouts.base import DENSE_DTYPES
from awq_edge.model.safetensors_files import TensorEntry, read_pieces
from awq_edge.model.w4a16 import NumberFormat, QuantizedWeight, Scheme, dequantize

Array = npt.NDArray[Any]

# Buffers that some checkpoints carry and no decoder reads.
_IGNORED_SUFFIXES = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".embeddings.position_ids",
)


# Rows of embedding and output layer that are compared, and the cosine above which one was made from
# the other: 0.9 in 2 bits, next to 0 where they are two weights.
_COMPARED_ROWS, _SAME_DIRECTION = 1024, 0.8


@dataclass(frozen=True)
class QuantizationConfig:
    """A quantized checkpoint in one line: the format of most weights of its blocks.

    scheme: "symmetric" where that is written; AutoAWQ checkpoints of other tools count as
    asymmetric, whose arithmetic covers both. method: what made it, or the layout's name where
    nobody says. layout: name of the layout.
    """

    bits: int
    group_size: int
    scheme: Scheme
    method: str
    layout: str


class Checkpoint:
    """A model directory whose every weight name and shape has been checked against its config.

    layout: how quantized linears are stored, None where there are none.
    """

    def __init__(
        self,
        files: ModelFiles,
        decoder: Decoder,
        layout: Layout | None = None,
        stored: StoredConfig | None = None,
    ) -> None:
        """Use `open`. stored: quantization_config, where there is one."""
        self.files = files
        self.decoder = decoder
        self.layout = layout
        self._formats: dict[str, NumberFormat] = {}
        self.quantization: QuantizationConfig | None = None
        if layout is not None and stored is not None:
            self._formats = self._find_formats(layout, stored)
            self.quantization = self._summary(layout, stored)

    @property
    def path(self) -> Path:
        return self.files.path

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Open a model directory.

        Raises ModelError on an unknown architecture or quantization format, and naming any weight
        that is missing, unexpected or misshapen.
        """
        files = ModelFiles(path)
        refuse_foreign(path, files.config, files.entries)
        decoder = decoder_from_config(files.config)
        files.entries = split_fused_experts(_names_on_disk(files, decoder), decoder)
        decoder = _as_shared(files, decoder)
        config = quantization_config(files.config)
        if config is None:
            checkpoint = cls(files, decoder)
        else:
            layout = layout_of_config(config, path)
            checkpoint = cls(
                files, decoder, layout, layout.read_config(config, path / "config.json")
            )
        checkpoint._check_names_and_shapes()
        return checkpoint

    @property
    def kept_names(self) -> list[str]:
        """Names of tensors that are kept as they are: of a vision tower and its projector."""
        vision = self.decoder.architecture.vision
        if vision is None:
            return []
        return [
            name
            for name in self.files.entries
            if vision.keeps(name) and not name.endswith(_IGNORED_SUFFIXES)
        ]

    @property
    def has_quantized(self) -> bool:
        """True where some of the linears are quantized."""
        return self.quantization is not None

    def linear_names(self) -> list[str]:
        """Full names of the linears of blocks, in the order of execution."""
        return [
            f"{self.decoder.layer_prefix(layer)}.{linear.name}"
            for layer in range(self.decoder.num_layers)
            for linear in self.decoder.linears(layer)
        ]

    def is_quantized(self, name: str) -> bool:
        """True where the linear of this full name ("model.layers.0.mlp.up_proj") is quantized."""
        return name in self._formats

    @functools.cached_property
    def output_layer_was_tied(self) -> bool:
        """True where the output layer is stored beside the embedding that it was made from: their
        first rows point the same way, which rows of weights trained separately do not."""
        arch, entries = self.decoder.architecture, self.files.entries
        name, embedding = f"{arch.lm_head}.weight", f"{arch.embedding}.weight"
        shapes = self.decoder.weight_shapes()
        if self.decoder.tied_embeddings or shapes[name] != shapes[embedding]:
            return False
        first = next(read_pieces(entries[embedding]))[:_COMPARED_ROWS].astype(np.float32)
        if self.is_quantized(arch.lm_head):
            other = dequantize(self.quantized(arch.lm_head))[: len(first)]
        else:
            other = next(read_pieces(entries[name]))[: len(first)].astype(np.float32)
        lengths = float(np.linalg.norm(first)) * float(np.linalg.norm(other))
        return float((first * other).sum()) > _SAME_DIRECTION * lengths

    @property
    def main_format(self) -> NumberFormat | None:
        """The number format of most weights of the blocks, None where nothing is quantized."""
        quantization = self.quantization
        if quantization is None:
            return None
        return NumberFormat(quantization.bits, quantization.group_size, quantization.scheme)

    def linear_format(self, name: str) -> NumberFormat:
        """Bits, group size and scheme of a quantized linear by full name."""
        return self._formats[name]

    def dense(self, name: str) -> Array:
        """An unquantized tensor by full name, bfloat16 as float32, other dtypes as stored."""
        return self.files.read(name)

    def quantized(self, name: str) -> QuantizedWeight:
        """The codes, scales and zeros of a quantized linear by full name.

        Raises ModelError when its scales are not finite, or its tensors contradict each other.
        """
        assert self.layout is not None
        try:
            weight = self.layout.read(name, self.linear_format(name), self.files.read)
        except ValueError as error:
            raise ModelError(f"{self.path}: '{name}': {error}") from None
        if not np.isfinite(weight.scales).all():
            raise ModelError(f"{self.path}: the scales of '{name}' have NaN or inf")
        return weight

    def bias(self, layer: int, linear: Linear) -> Array | None:
        """The bias of a block's linear [out], or None."""
        if not linear.bias:
            return None
        return self.files.read(f"{self.decoder.layer_prefix(layer)}.{linear.name}.bias")

    def _check_names_and_shapes(self) -> None:
        expected = self.decoder.weight_shapes()
        if self.quantization is not None:
            expected = self._quantized_shapes(expected)
        layout = self.layout
        for name, shape in expected.items():
            entry = self.files.entries.get(name)
            if entry is None:
                raise ModelError(f"{self.path}: weight '{name}' of shape {list(shape)} is missing")
            if entry.shape != shape:
                raise ModelError(
                    f"{self.path}: weight '{name}' has shape {list(entry.shape)}, "
                    f"config.json implies {list(shape)}"
                )
            wanted = DENSE_DTYPES if layout is None else layout.dtypes(name)
            if entry.dtype not in wanted:
                raise ModelError(
                    f"{self.path}: weight '{name}' has dtype {entry.dtype}; supported: "
                    f"{', '.join(wanted)}"
                )
        vision = self.decoder.architecture.vision
        for part in () if vision is None else vision.parts:
            if not any(name.startswith(f"{part}.") for name in self.files.entries):
                raise ModelError(f"{self.path}: the weights of '{part}' are missing")
        lm_head = f"{self.decoder.architecture.lm_head}.weight"
        for name in self.files.entries:
            tied_copy = name == lm_head and self.decoder.tied_embeddings
            is_kept = vision is not None and vision.keeps(name)
            if is_kept or name.endswith(_IGNORED_SUFFIXES):
                continue
            if name not in expected and not tied_copy:
                raise ModelError(
                    f"{self.path}: unexpected weight '{name}' for model_type "
                    f"'{self.decoder.model_type}'"
                )

    def _quantized_shapes(self, dense: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        assert self.layout is not None
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in dense.items():
            linear = name.removesuffix(".weight")
            number_format = self._formats.get(linear)
            if number_format is None:
                shapes[name] = shape
                continue
            out_features, in_features = shape
            reason = self.layout.obstacle(out_features, in_features, number_format)
            if reason is not None:
                raise ModelError(f"{self.path}: '{linear}' cannot be quantized: {reason}")
            shapes |= self.layout.shapes(
                linear, (out_features, in_features), number_format, self.files.entries
            )
        return shapes

    def _find_formats(self, layout: Layout, stored: StoredConfig) -> dict[str, NumberFormat]:
        """Number formats of the quantized linears. Raises ModelError where config.json and the
        stored tensors disagree about what is quantized."""
        self._refuse_quantized_modules(layout)
        formats = {}
        shapes = self.decoder.weight_shapes()
        for linear in self._linears():
            shape = shapes.get(f"{linear}.weight")
            if shape is None:  # an output layer that is the embedding
                continue
            names = names_in_memory(linear, self.decoder)
            number_format = stored.format_of(names, shape[1])
            if layout.is_stored(linear, self.files.entries):
                if number_format is None:
                    raise ModelError(
                        f"{self.path}: '{linear}' is quantized, but config.json does not say how: "
                        "no target of its config_groups matches, or `ignore` does"
                    )
                formats[linear] = number_format
            elif number_format is not None and stored.strict:
                raise ModelError(
                    f"{self.path}: config.json says that '{linear}' is quantized, but it is not; "
                    "the weights and config.json do not belong together"
                )
        if not formats:
            raise ModelError(
                f"{self.path}: config.json says that the weights are quantized ({layout.name}), "
                "but none is stored so; the weights and config.json do not belong together"
            )
        return formats

    def _refuse_quantized_modules(self, layout: Layout) -> None:
        """Raise ModelError where a module is stored quantized that is read in 16 bits alone."""
        decoder, entries = self.decoder, self.files.entries
        arch = decoder.architecture
        tied = [arch.lm_head] if decoder.tied_embeddings else []
        modules = [arch.embedding, *tied, *decoder.unquantized_modules()]
        refused = [name for name in modules if layout.is_stored(name, entries)]
        if arch.vision is not None:
            kept = (name.rpartition(".")[0] for name in entries if arch.vision.keeps(name))
            refused += [name for name in dict.fromkeys(kept) if layout.is_stored(name, entries)]
        if not refused:
            return
        if refused[0] == arch.lm_head:
            raise ModelError(
                f"{self.path}: '{arch.lm_head}' is quantized, and config.json has "
                "tie_word_embeddings true: set it to false if that layer is a weight of its own"
            )
        raise ModelError(
            f"{self.path}: '{refused[0]}' is quantized (of {len(refused)} such modules); "
            "embeddings, routers, projections and vision towers are read in 16 bits alone: "
            "quantize the model again with them ignored, or export the unquantized model"
        )

    def _linears(self) -> Iterator[str]:
        """Full names of all that is a linear."""
        decoder = self.decoder
        for layer in range(decoder.num_layers):
            for linear in decoder.linears(layer):
                yield f"{decoder.layer_prefix(layer)}.{linear.name}"
        yield decoder.architecture.lm_head

    def _summary(self, layout: Layout, stored: StoredConfig) -> QuantizationConfig:
        sizes: dict[NumberFormat, int] = {}
        head, shapes = self.decoder.architecture.lm_head, self.decoder.weight_shapes()
        for linear, number_format in self._formats.items():
            out_features, in_features = shapes[f"{linear}.weight"]
            weights = 0 if linear == head else out_features * in_features
            sizes[number_format] = sizes.get(number_format, 0) + weights
        if not sizes:
            sizes = dict.fromkeys(stored.targets.values(), 0)
        main = max(sizes, key=lambda number_format: sizes[number_format])
        return QuantizationConfig(
            bits=main.bits,
            group_size=main.group_size,
            scheme=main.scheme,
            method=stored.method,
            layout=layout.name,
        )


def _as_shared(files: ModelFiles, decoder: Decoder) -> Decoder:
    """The decoder, and names of the files, where embedding and output layer are one weight by
    config.json: the one that is stored is both, and two that differ are two, as transformers has
    it."""
    arch = decoder.architecture
    embedding, lm_head = f"{arch.embedding}.weight", f"{arch.lm_head}.weight"
    if not decoder.tied_embeddings or lm_head not in files.entries:
        return decoder
    if embedding not in files.entries:
        files.entries[embedding] = files.entries.pop(lm_head)
        files.entries = dict(sorted(files.entries.items()))
        return decoder
    if files.equal(embedding, lm_head):
        return decoder
    files.config = _untied(files.config)
    return dataclasses.replace(decoder, tied_embeddings=False)


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    untied = {**config, "tie_word_embeddings": False}
    if isinstance(config.get("text_config"), Mapping):
        untied["text_config"] = {**config["text_config"], "tie_word_embeddings": False}
    return untied


def _names_on_disk(files: ModelFiles, decoder: Decoder) -> dict[str, TensorEntry]:
    """The entries of a directory; names as transformers has them in memory in their form on disk.

    transformers 5 writes the former where it is told to.
    """
    vision = decoder.architecture.vision
    if vision is None:
        return files.entries
    by_name: dict[str, TensorEntry] = {}
    for name, entry in files.entries.items():
        on_disk = vision.name_on_disk(name)
        if on_disk in by_name:
            raise ModelError(f"{files.path}: weight '{on_disk}' is there twice, also as '{name}'")
        by_name[on_disk] = entry
    return dict(sorted(by_name.items()))
