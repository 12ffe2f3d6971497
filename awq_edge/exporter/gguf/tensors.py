"""Tensors of a GGUF file, from those of a checkpoint: names, types, order of rows.

A tensor is made when it is written. No more than one is in memory, of a mixture that of all experts
of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, TensorNameMap, get_tensor_name_map
from gguf import GGMLQuantizationType as GgufType

from awq_edge.errors import ModelError
from awq_edge.exporter.gguf.blocks import block_type, obstacle, pack
from awq_edge.exporter.gguf.checks import llama_cpp_of
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.lm_head import UNQUANTIZED, rounded_format
from awq_edge.model.rope import frequencies
from awq_edge.model.w4a16 import QuantizedWeight, quantize

Array = npt.NDArray[Any]

_DENSE = {"F16": GgufType.F16, "BF16": GgufType.BF16, "F32": GgufType.F32, "F64": GgufType.F32}
_FLOAT32_NAMES = (".ffn_gate_inp.weight",)  # routers, which llama.cpp reads in it alone
_BFLOAT16_INF = np.uint16(0x7F80)
# Names of llama.cpp's own, which no checkpoint has.
_ROPE_FREQS = "rope_freqs.weight"
_ROPE_LONG, _ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file.

    shape: of its weights, rows first. load: makes its bytes, uint8 [..., bytes of a row].
    """

    name: str
    type: GgufType
    shape: tuple[int, ...]
    load: Callable[[], Array]

    @property
    def row_bytes(self) -> int:
        block, size = GGML_QUANT_SIZES[self.type]
        return self.shape[-1] // int(block) * int(size)

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape[:-1], dtype=np.int64)) * self.row_bytes


class TensorPlan:
    """Makes the tensors of a checkpoint.

    output_bits: of the output layer, or of an embedding that is one, where the checkpoint has it
    unquantized: 16 keeps it as it is.
    """

    def __init__(self, checkpoint: Checkpoint, output_bits: int = UNQUANTIZED) -> None:
        self._checkpoint = checkpoint
        self._decoder = checkpoint.decoder
        self._arch = checkpoint.decoder.architecture
        self._target = llama_cpp_of(checkpoint.decoder)
        self._output_bits = output_bits
        self._names = _names(self._target.name, checkpoint.decoder.num_layers)

    def tensors(self) -> list[Tensor]:
        """Every tensor, in the order of execution.

        Raises ModelError naming a tensor that GGUF has no type or llama.cpp no name for.
        """
        shapes, checkpoint = self._decoder.weight_shapes(), self._checkpoint
        lm_head = f"{self._arch.lm_head}.weight"
        tensors = self._rotation()
        experts: dict[str, list[str]] = {}
        for name in shapes:
            merged = self._of_all_experts(name)
            experts.setdefault(merged or name, []).append(name)
        for name, members in experts.items():
            if name == lm_head and not self._target.own_output:
                continue  # the embedding stands for it (checks.py)
            made = [self._tensor(name, member, shapes[member]) for member in members]
            tensors.append(made[0] if name in shapes else _stacked(made, checkpoint))
        return tensors

    def _tensor(self, name: str, source: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor. name: of what it becomes, source: in the checkpoint."""
        target = self._name(name)
        linear = source.removesuffix(".weight")
        rows = self._row_order(linear, source, shape[0])
        if self._checkpoint.is_quantized(linear):
            return self._quantized(target, linear, shape, rows)
        if self._is_rounded(linear, shape):
            return self._rounded(target, source, shape)
        return self._dense(target, source, shape, rows)

    def _quantized(
        self, target: str, linear: str, shape: tuple[int, ...], rows: Array | None
    ) -> Tensor:
        checkpoint = self._checkpoint
        number_format = checkpoint.linear_format(linear)
        gguf_type = block_type(number_format)
        if gguf_type is None:
            raise ModelError(
                f"{checkpoint.path}: '{linear}' is quantized in {number_format}: "
                f"{obstacle(number_format)}"
            )

        def load() -> Array:
            weight = checkpoint.quantized(linear)
            if rows is not None:
                weight = QuantizedWeight(
                    weight.codes[rows], weight.scales[rows], weight.zeros[rows], weight.bits
                )
            try:
                return pack(weight, gguf_type)
            except ValueError as error:
                raise ModelError(f"{checkpoint.path}: '{linear}': {error}") from None

        return Tensor(target, gguf_type, shape, load)

    def _rounded(self, target: str, source: str, shape: tuple[int, ...]) -> Tensor:
        """An output layer that is rounded to nearest, in GGUF's own blocks."""
        number_format = rounded_format(self._output_bits)
        gguf_type = block_type(number_format)
        assert gguf_type is not None

        def load() -> Array:
            rounded = []
            for piece in self._checkpoint.files.pieces(source):
                try:
                    weight = quantize(piece, number_format.bits, number_format.group_size,
                                      number_format.scheme)  # fmt: skip
                except ValueError as error:
                    raise ModelError(f"{self._checkpoint.path}: '{source}': {error}") from None
                rounded.append(pack(weight, gguf_type))
            return np.concatenate(rounded)

        return Tensor(target, gguf_type, shape, load)

    def _dense(
        self, target: str, source: str, shape: tuple[int, ...], rows: Array | None
    ) -> Tensor:
        """A tensor as it is stored; norms, biases and routers in float32."""
        files = self._checkpoint.files
        is_norm = len(shape) == 1 and source.endswith(".weight")
        offset = self._decoder.norm_offset if is_norm else 0.0
        gguf_type = _DENSE[files.entries[source].dtype]
        if len(shape) == 1 or target.endswith(_FLOAT32_NAMES):
            gguf_type = GgufType.F32

        def load() -> Array:
            if gguf_type == GgufType.F32:
                values = files.read(source).astype(np.float32) + np.float32(offset)
            else:
                values, _ = files.read_bits(source)
            if not _is_finite(values, gguf_type):
                raise ModelError(f"{self._checkpoint.path}: '{source}' has NaN or inf")
            return _as_bytes(values if rows is None else values[rows])

        return Tensor(target, gguf_type, shape, load)

    def _row_order(self, linear: str, source: str, rows: int) -> Array | None:
        """The order of rows of q and k, and of their biases, where llama.cpp has another one."""
        if not self._target.rotates_neighbours:
            return None
        name = linear.removesuffix(".bias")
        if not name.endswith(tuple(f".{part}" for part in self._arch.qkv[:2])):
            return None
        halves = np.arange(rows).reshape(-1, 2, self._decoder.head_size // 2)
        return halves.swapaxes(1, 2).reshape(-1)

    def _is_rounded(self, linear: str, shape: tuple[int, ...]) -> bool:
        outputs = self._arch.embedding if self._is_output else self._arch.lm_head
        if self._output_bits == UNQUANTIZED or linear != outputs:
            return False
        return shape[1] % rounded_format(self._output_bits).group_size == 0

    @property
    def _is_output(self) -> bool:
        """True where the embedding is the output layer too."""
        return self._decoder.tied_embeddings or not self._target.own_output

    def _rotation(self) -> list[Tensor]:
        """What the frequencies of a rotation are divided by, where it is no plain one."""
        rope = self._decoder.rope
        if rope.kind == "llama3":
            plain, _ = frequencies(replace(rope, kind="default"), self._decoder.max_positions)
            turned, _ = frequencies(rope, self._decoder.max_positions)
            return [_vector(_ROPE_FREQS, plain / turned)]
        if rope.kind == "longrope":
            long, short = (np.asarray(f, np.float32) for f in (rope.long_factor, rope.short_factor))
            return [_vector(_ROPE_LONG, long), _vector(_ROPE_SHORT, short)]
        return []

    def _of_all_experts(self, name: str) -> str | None:
        """The name of one expert's weight without its number, None for other tensors."""
        experts = self._arch.experts
        if experts is None:
            return None
        for pattern in (*experts.mlp_in, experts.mlp_out):
            before, after = pattern.split("{expert}")
            head, found, tail = name.partition(f".{before}")
            number, point, rest = tail.partition(".")
            if found and number.isdecimal() and f"{point}{rest}" == f"{after}.weight":
                return f"{head}.{before.removesuffix('.')}{after}.weight"
        return None

    def _name(self, name: str) -> str:
        """A checkpoint's name in llama.cpp. Raises ModelError where it has none."""
        arch = self._arch
        plain = name
        for ours, theirs in (
            (arch.layers, "model.layers"),
            (arch.embedding, "model.embed_tokens"),
            (arch.final_norm, "model.norm"),
            (arch.lm_head, "lm_head"),
        ):
            if name.startswith(f"{ours}."):
                plain = theirs + name[len(ours) :]
        found: str | None = self._names.get_name(plain, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(
                f"{self._checkpoint.path}: llama.cpp has no name for '{name}' of architecture "
                f"{self._target.name}"
            )
        return found


def _names(architecture: str, num_layers: int) -> TensorNameMap:
    numbers = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    return get_tensor_name_map(numbers[architecture], num_layers)


def _stacked(tensors: Sequence[Tensor], checkpoint: Checkpoint) -> Tensor:
    """One tensor of all experts of a layer. Raises ModelError where their types differ."""
    first = tensors[0]
    other = next((tensor for tensor in tensors if tensor.type != first.type), None)
    if other is not None:
        raise ModelError(
            f"{checkpoint.path}: experts of '{first.name}' are stored in {first.type.name} and "
            f"{other.type.name}, and GGUF has all experts of a layer in one tensor; quantize them "
            "alike"
        )

    def load() -> Array:
        stacked = np.empty((len(tensors), first.shape[0], first.row_bytes), np.uint8)
        for number, tensor in enumerate(tensors):
            stacked[number] = tensor.load()
        return stacked

    return Tensor(first.name, first.type, (len(tensors), *first.shape), load)


def _vector(name: str, values: npt.NDArray[np.float32]) -> Tensor:
    return Tensor(name, GgufType.F32, values.shape, lambda: _as_bytes(values))


def _is_finite(values: Array, gguf_type: GgufType) -> bool:
    """True where no value is NaN or inf; bfloat16 comes as its bits."""
    if gguf_type == GgufType.BF16:
        return not bool(((values & _BFLOAT16_INF) == _BFLOAT16_INF).any())
    return bool(np.isfinite(values).all())


def _as_bytes(values: Array) -> Array:
    return np.ascontiguousarray(values).view(np.uint8)
