"""The cuda lowering: a program for the kernels of `plugins/`, and no graph.

    q, k, v                 one linear where their formats agree, else three
    gate, up                one linear whose epilogue is silu(gate) * up where they are quantized
                            alike, one dense one where neither is quantized, else two
    q_norm, k_norm, rotation, cache, attention
                            one call
    residual sum, norm      one call

`awq_edge/runtime/backends/cuda/program.py` says what a program is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from awq_edge.exporter.canonical import GraphSpec, lm_head_bits
from awq_edge.exporter.kernel_weights import kernel_weight
from awq_edge.exporter.lowered import Lowered
from awq_edge.exporter.sources import QuantizedWeights, Sources
from awq_edge.exporter.weights import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    INT32,
    Part,
    Weight,
    cast,
    concatenated,
    of_array,
)
from awq_edge.exporter.writer import WeightPlan
from awq_edge.kernels.interface import LAYOUT_VERSION
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.lm_head import rounded_format
from awq_edge.model.rope import rope_tables
from awq_edge.recipe.recipes import Recipe
from awq_edge.runtime.backends.cuda.program import (
    CudaProgram,
    DenseLinear,
    Dtype,
    Layer,
    Linear,
    QuantizedLinear,
    TensorPlace,
)

MODEL_FILE, WEIGHTS_FILE = "model.json", "model.weights"
DTYPES = {"float16": FLOAT16, "bfloat16": BFLOAT16}
_DTYPE_NAMES: dict[int, Dtype] = {
    FLOAT16: "float16",
    BFLOAT16: "bfloat16",
    FLOAT32: "float32",
    INT32: "int32",
}


def build(checkpoint: Checkpoint, spec: GraphSpec, recipe: Recipe) -> Lowered:
    """The program of a checkpoint."""
    builder = _ProgramBuilder(checkpoint, spec)
    program = builder.build()

    def render(plan: WeightPlan) -> bytes:
        places = {
            weight.name: TensorPlace(
                dtype=_DTYPE_NAMES[weight.dtype],
                shape=weight.shape,
                offset=plan.offsets[weight.name],
            )
            for weight in plan.weights
        }
        placed = program.model_copy(update={"tensors": places})
        return (placed.model_dump_json(indent=1) + "\n").encode()

    return Lowered(MODEL_FILE, WEIGHTS_FILE, tuple(builder.weights), render)


class _ProgramBuilder:
    """Collects the weights in the order of execution while it puts the program together."""

    def __init__(self, checkpoint: Checkpoint, spec: GraphSpec) -> None:
        self._checkpoint = checkpoint
        self._decoder = checkpoint.decoder
        self._arch = checkpoint.decoder.architecture
        self._spec = spec
        self._dtype = DTYPES[spec.activation_dtype]
        self._sources = Sources(checkpoint)
        self.weights: list[Weight] = []

    def build(self) -> CudaProgram:
        """The program; its tensors have no places yet."""
        decoder = self._decoder
        embedding = self._dense(f"{self._arch.embedding}.weight", "embedding")
        cosine, sine = (
            self._add(of_array(f"rope.{name}", table, FLOAT32, "tables"))
            for name, table in zip(
                ("cosine", "sine"), rope_tables(decoder.rope, self._spec.context), strict=True
            )
        )
        return CudaProgram(
            layout_version=LAYOUT_VERSION,
            activation_dtype="bfloat16" if self._dtype == BFLOAT16 else "float16",
            vocab_size=decoder.vocab_size,
            hidden_size=decoder.hidden_size,
            intermediate_size=decoder.intermediate_size,
            num_heads=decoder.num_heads,
            num_kv_heads=decoder.num_kv_heads,
            head_size=decoder.head_size,
            rotary_size=decoder.rope.rotary_size,
            context=self._spec.context,
            norm_eps=decoder.norm_eps,
            attention_scale=float(decoder.attention_scale),
            embedding=embedding,
            cosine=cosine,
            sine=sine,
            layers=tuple(self._layer(layer) for layer in range(decoder.num_layers)),
            final_norm=self._dense(f"{self._arch.final_norm}.weight", "lm_head"),
            lm_head=self._lm_head(),
            tensors={},
        )

    def _layer(self, layer: int) -> Layer:
        arch, prefix = self._arch, self._decoder.layer_prefix(layer)
        window = self._decoder.windows[layer]
        norms = {"q_norm": arch.q_norm, "k_norm": arch.k_norm} if arch.qk_norm else {}
        names = {key: f"{prefix}.{name}.weight" for key, name in norms.items()}
        return Layer(
            attention_norm=self._dense(f"{prefix}.{arch.attention_norm}.weight", "blocks"),
            qkv=self._merged(layer, arch.qkv),
            **{key: self._dense(name, "blocks") for key, name in names.items()},
            window=window if window is not None and window < self._spec.context else None,
            attention_out=self._linear(layer, (arch.attention_out,)),
            mlp_norm=self._dense(f"{prefix}.{arch.mlp_norm}.weight", "blocks"),
            gate_up=self._merged(layer, arch.mlp_in, gate_up=True),
            mlp_out=self._linear(layer, (arch.mlp_out,)),
        )

    def _lm_head(self) -> Linear:
        """The output layer as the checkpoint has it, or rounded as the recipe says."""
        arch = self._arch
        part: Part = "lm_head"
        source = f"{arch.embedding if self._decoder.tied_embeddings else arch.lm_head}.weight"
        bits = lm_head_bits(self._checkpoint, self._spec.lm_head_bits)
        if self._checkpoint.is_quantized(arch.lm_head):
            return self._quantized(
                arch.lm_head, [self._sources.quantized(arch.lm_head, part)], bits, None
            )
        if bits == 16:
            weight = self._read(source, f"{arch.lm_head}.weight", part)
            return self._dense_linear([weight], f"{arch.lm_head}.weight", None)
        rounded = self._sources.rounded(source, arch.lm_head, rounded_format(bits), part)
        return self._quantized(arch.lm_head, [rounded], bits, None)

    def _merged(
        self, layer: int, names: tuple[str, ...], *, gate_up: bool = False
    ) -> tuple[Linear, ...]:
        """Linears of one input: one, where all have the same bits and groups or none has any."""
        formats = [self._format(layer, name) for name in names]
        if len(list(groupby(formats))) > 1:
            return tuple(self._linear(layer, (name,)) for name in names)
        return (self._linear(layer, names, gate_up=gate_up),)

    def _format(self, layer: int, name: str) -> tuple[int, int] | None:
        full = f"{self._decoder.layer_prefix(layer)}.{name}"
        if not self._checkpoint.is_quantized(full):
            return None
        number_format = self._checkpoint.linear_format(full)
        return number_format.bits, number_format.group_size

    def _linear(self, layer: int, names: tuple[str, ...], *, gate_up: bool = False) -> Linear:
        """Linears of one format, one below the other."""
        prefix = self._decoder.layer_prefix(layer)
        full = [f"{prefix}.{name}" for name in names]
        parent = full[0].rpartition(".")[0]
        module = f"{parent}.{'+'.join(name.rpartition('.')[2] for name in full)}"
        bias = self._bias(layer, names, f"{module}.bias")
        number_format = self._format(layer, names[0])
        if number_format is None:
            weights = [self._read(f"{name}.weight", f"{name}.weight", "blocks") for name in full]
            return self._dense_linear(weights, f"{module}.weight", bias)
        parts = [self._sources.quantized(name, "blocks") for name in full]
        return self._quantized(module, parts, number_format[0], bias, gate_up=gate_up)

    def _bias(self, layer: int, names: tuple[str, ...], name: str) -> Weight | None:
        linears = {linear.name: linear for linear in self._decoder.linears(layer)}
        prefix = self._decoder.layer_prefix(layer)
        full = [f"{prefix}.{name}.bias" for name in names if linears[name].bias]
        biases = [self._read(source, source, "blocks") for source in full]
        return concatenated(name, biases) if biases else None

    def _quantized(
        self,
        module: str,
        parts: Sequence[QuantizedWeights],
        bits: int,
        bias: Weight | None,
        *,
        gate_up: bool = False,
    ) -> QuantizedLinear:
        weight = kernel_weight(module, parts, bits, gate_up=gate_up)
        return QuantizedLinear(
            bits=weight.bits,
            group_size=weight.group_size,
            in_features=weight.in_features,
            out_features=weight.out_features,
            gate_up=gate_up,
            qweight=self._add(weight.qweight),
            scales=self._add(weight.scales),
            zeros=None if weight.zeros is None else self._add(weight.zeros),
            bias=None if bias is None else self._add(bias),
        )

    def _dense_linear(
        self, weights: Sequence[Weight], name: str, bias: Weight | None
    ) -> DenseLinear:
        weight = concatenated(name, weights)
        return DenseLinear(
            in_features=weight.shape[1],
            out_features=weight.shape[0],
            weight=self._add(weight),
            bias=None if bias is None else self._add(bias),
        )

    def _dense(self, source: str, part: Part) -> str:
        """Add a tensor in the activations' type; returns its name."""
        return self._add(self._read(source, source, part))

    def _read(self, source: str, name: str, part: Part) -> Weight:
        """A tensor in the activations' type. bfloat16 has float32's range: nothing overflows."""
        read = FLOAT32 if self._dtype == BFLOAT16 else self._dtype
        return cast(self._sources.dense(source, name, read, part), self._dtype)

    def _add(self, weight: Weight) -> str:
        self.weights.append(weight)
        return weight.name
