"""From a checkpoint to the canonical graph.

    input_ids ─ Gather(embedding) ─ block 0 ─ ... ─ block n-1 ─ rows of logits_positions ─ norm ─┐
    past_length, past.{i}.* ────────┴────── present.{i}.*          logits ◄──── lm_head ◄────────┘

docs/graph.md specifies inputs, outputs and the two operators.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs
from onnx import TensorProto

from awq_edge.checkpoint import Checkpoint
from awq_edge.exporter.graph import (
    ACTIVATION_DTYPES,
    BATCH,
    CANONICAL_OPSET,
    DOMAIN,
    POSITIONS,
    SEQUENCE,
    DecoderGraph,
    Dims,
    GraphBuilder,
    module_path,
)
from awq_edge.exporter.sources import QuantizedWeights, Sources
from awq_edge.exporter.weights import FLOAT32, Part, of_array
from awq_edge.rope import rope_tables
from awq_edge.w4a16 import Scheme

INT64 = int(TensorProto.INT64)
# lm_head is rounded to nearest at export: small groups, because nothing corrects its error.
LM_HEAD_GROUP_SIZE = 32
LM_HEAD_SCHEMES: dict[int, Scheme] = {4: "asymmetric", 8: "symmetric"}
# layout_version of a W4A16Linear whose weights are as docs/graph.md says; lowerings that repack
# them for their kernels count from 1.
LOGICAL_LAYOUT = 0


@dataclass(frozen=True)
class GraphSpec:
    """What the recipe decides of a graph.

    context: positions of the KV cache. activation_dtype: "float16" or "float32".
    lm_head_bits: 4 or 8, or 16 to leave it unquantized.
    """

    context: int
    activation_dtype: str
    lm_head_bits: int


def build_canonical_graph(checkpoint: Checkpoint, spec: GraphSpec) -> DecoderGraph:
    """The canonical graph of a checkpoint. Reads no weight but, where its type depends on it,
    the embedding.

    Raises ModelError when a weight cannot be read.
    """
    return _CanonicalBuilder(checkpoint, spec).build()


def lm_head_bits(checkpoint: Checkpoint, asked: int) -> int:
    """The bits that lm_head gets where `asked` are asked for (16: unquantized).

    A quantized one stays as it is; groups that do not fit leave it unquantized.
    """
    decoder, lm_head = checkpoint.decoder, checkpoint.decoder.architecture.lm_head
    if checkpoint.is_quantized(lm_head):
        return checkpoint.linear_format(lm_head).bits
    return 16 if decoder.hidden_size % LM_HEAD_GROUP_SIZE else asked


def unquantized_linears(checkpoint: Checkpoint, lm_head_asked: int) -> dict[str, str]:
    """Linears that stay unquantized though quantization was asked for: full name -> reason."""
    decoder, main = checkpoint.decoder, checkpoint.main_format
    reasons = {}
    if main is not None and checkpoint.layout is not None:
        for layer in range(decoder.num_layers):
            for linear in decoder.linears(layer):
                name = f"{decoder.layer_prefix(layer)}.{linear.name}"
                if not checkpoint.is_quantized(name):
                    reason = checkpoint.layout.obstacle(
                        linear.out_features, linear.in_features, main
                    )
                    reasons[name] = reason or "not quantized in the checkpoint"
    lm_head = decoder.architecture.lm_head
    rounds = not checkpoint.is_quantized(lm_head)
    if rounds and lm_head_bits(checkpoint, lm_head_asked) > lm_head_asked:
        reasons[lm_head] = (
            f"in_features {decoder.hidden_size} is not a multiple of group_size "
            f"{LM_HEAD_GROUP_SIZE}"
        )
    return reasons


class _CanonicalBuilder:
    def __init__(self, checkpoint: Checkpoint, spec: GraphSpec) -> None:
        self._checkpoint = checkpoint
        self._decoder = checkpoint.decoder
        self._arch = checkpoint.decoder.architecture
        self._spec = spec
        self._dtype = ACTIVATION_DTYPES[spec.activation_dtype]
        self._sources = Sources(checkpoint)
        self._result = DecoderGraph(gs.Graph(name=self._decoder.model_type, opset=CANONICAL_OPSET))
        self._builder = GraphBuilder(self._result)

    def build(self) -> DecoderGraph:
        builder, decoder = self._builder, self._decoder
        input_ids = builder.variable("input_ids", INT64, (BATCH, SEQUENCE))
        self._past_length = builder.variable("past_length", INT64, (BATCH,))
        positions = builder.variable("logits_positions", INT64, (BATCH, POSITIONS))
        logits = builder.variable("logits", self._dtype, (BATCH, POSITIONS, decoder.vocab_size))
        graph = self._result.graph
        graph.inputs = [input_ids, self._past_length, positions]
        graph.outputs = [logits]
        self._tables = self._rope_tables()
        hidden = self._embedding(input_ids)
        for layer in range(decoder.num_layers):
            hidden = self._block(layer, hidden)
        self._logits(hidden, positions, logits)
        return self._result

    def _embedding(self, input_ids: gs.Variable) -> gs.Variable:
        """input_ids [B, S] ─ Gather ─ (Cast) ─ [B, S, hidden], in the activations' type."""
        source = f"{self._arch.embedding}.weight"
        exact = self._checkpoint.quantization is None and self._dtype == FLOAT32
        stored = self._sources.embedding_dtype(source, exact)
        weight = self._sources.dense(source, source, stored, "embedding")
        path = module_path(self._arch.embedding)
        shape = (BATCH, SEQUENCE, self._decoder.hidden_size)
        inputs = [self._builder.weight(weight), input_ids]
        (rows,) = self._builder.node("Gather", f"{path}/Gather", inputs, [(stored, shape)])
        if stored == self._dtype:
            return rows
        (rows,) = self._builder.node(
            "Cast", f"{path}/Cast", [rows], [(self._dtype, shape)], {"to": self._dtype}
        )
        return rows

    def _rope_tables(self) -> tuple[gs.Constant, gs.Constant]:
        """Cosine and sine, float32 [context, rotary_size / 2]."""
        cosine, sine = rope_tables(self._decoder.rope, self._spec.context)
        return (
            self._builder.weight(of_array("rope.cosine", cosine, FLOAT32, "tables")),
            self._builder.weight(of_array("rope.sine", sine, FLOAT32, "tables")),
        )

    def _block(self, layer: int, hidden: gs.Variable) -> gs.Variable:
        """One decoder block.

        ┌───────────────────────────────┐ ┌─────────────────────────┐
        x ─ RMSNormalization ─ attention ─ Add ─ RMSNormalization ─ mlp ─ Add
        """
        prefix = self._decoder.layer_prefix(layer)
        normed = self._norm(hidden, f"{prefix}.{self._arch.attention_norm}", "blocks")
        attention = self._attention(layer, normed)
        hidden = self._add(f"{module_path(prefix)}/attention/Add", hidden, attention)
        normed = self._norm(hidden, f"{prefix}.{self._arch.mlp_norm}", "blocks")
        return self._add(f"{module_path(prefix)}/mlp/Add", hidden, self._mlp(prefix, normed))

    def _attention(self, layer: int, hidden: gs.Variable) -> gs.Variable:
        """Attention of one block: q_norm and k_norm where the architecture has them.

            ┌─ q_proj ─ (q_norm) ─┐  ┌─ past_length, tables, past.{i}.*
        x ──┼─ k_proj ─ (k_norm) ─┼──┴─ CachedAttention ─ o_proj
            └─ v_proj ────────────┘      └─ present.{i}.*
        """
        decoder, arch, builder = self._decoder, self._arch, self._builder
        prefix = decoder.layer_prefix(layer)
        q, k, v = (self._linear(layer, name, hidden) for name in arch.qkv)
        if arch.qk_norm:
            q = self._head_norm(q, f"{prefix}.{arch.q_norm}", decoder.num_heads)
            k = self._head_norm(k, f"{prefix}.{arch.k_norm}", decoder.num_kv_heads)
        cache = (BATCH, decoder.num_kv_heads, self._spec.context, decoder.head_size)
        past = [builder.variable(f"past.{layer}.{p}", self._dtype, cache) for p in _CACHE_PARTS]
        present = [
            builder.variable(f"present.{layer}.{p}", self._dtype, cache) for p in _CACHE_PARTS
        ]
        self._result.graph.inputs.extend(past)
        self._result.graph.outputs.extend(present)
        attributes = {
            "num_heads": decoder.num_heads,
            "num_kv_heads": decoder.num_kv_heads,
            "head_size": decoder.head_size,
            "rotary_size": decoder.rope.rotary_size,
            "scale": float(decoder.attention_scale),
        }
        window = decoder.windows[layer]
        if window is not None and window < self._spec.context:
            attributes["window"] = window
        attention = arch.attention_out.rpartition(".")[0]
        output, *_ = builder.node(
            "CachedAttention",
            f"{module_path(f'{prefix}.{attention}')}/CachedAttention",
            [q, k, v, self._past_length, *self._tables, *past],
            [(self._dtype, (BATCH, SEQUENCE, decoder.num_heads * decoder.head_size)), *present],
            attributes,
            DOMAIN,
        )
        return self._linear(layer, arch.attention_out, output)

    def _mlp(self, prefix: str, hidden: gs.Variable) -> gs.Variable:
        """The gated MLP; SiLU as Sigmoid and Mul, which every runtime has.

            ┌─ gate_proj ─┬─ Sigmoid ─ Mul ─┐
        x ──┤             └─────────────┘   Mul ─ down_proj
            └─ up_proj ─────────────────────┘
        """
        builder, layer = self._builder, int(prefix.rpartition(".")[2])
        gate, up = (self._linear(layer, name, hidden) for name in self._arch.mlp_in)
        path = module_path(f"{prefix}.{self._arch.mlp_out.rpartition('.')[0]}")
        output = (self._dtype, (BATCH, SEQUENCE, self._decoder.intermediate_size))
        (sigmoid,) = builder.node("Sigmoid", f"{path}/activation/Sigmoid", [gate], [output])
        (silu,) = builder.node("Mul", f"{path}/activation/Mul", [gate, sigmoid], [output])
        (product,) = builder.node("Mul", f"{path}/Mul", [silu, up], [output])
        return self._linear(layer, self._arch.mlp_out, product)

    def _logits(self, hidden: gs.Variable, positions: gs.Variable, logits: gs.Variable) -> None:
        """Final norm and lm_head, of the wanted rows alone: a prefill needs one of S.

        x [B, S, hidden] ───────┐
        logits_positions ─ Unsqueeze ─ GatherND ─ [B, P, hidden] ─ RMSNormalization ─ lm_head
        """
        builder, arch = self._builder, self._arch
        path = module_path(arch.lm_head)
        (indices,) = builder.node(
            "Unsqueeze",
            f"{path}/rows/Unsqueeze",
            [positions, builder.inline("axes.last", [-1])],
            [(INT64, (BATCH, POSITIONS, 1))],
        )
        shape = (BATCH, POSITIONS, self._decoder.hidden_size)
        (rows,) = builder.node(
            "GatherND",
            f"{path}/rows/GatherND",
            [hidden, indices],
            [(self._dtype, shape)],
            {"batch_dims": 1},
        )
        normed = self._norm(rows, arch.final_norm, "lm_head")
        tied = self._decoder.tied_embeddings
        source = f"{arch.embedding if tied else arch.lm_head}.weight"
        bits = self._spec.lm_head_bits
        if self._checkpoint.is_quantized(arch.lm_head):
            bits = self._checkpoint.linear_format(arch.lm_head).bits
            weights = self._sources.quantized(arch.lm_head, "lm_head")
            self._w4a16(arch.lm_head, normed, weights, bits, None, logits)
        elif bits == 16:
            self._matmul(arch.lm_head, source, normed, "lm_head", logits)
        else:
            sizes = (bits, LM_HEAD_GROUP_SIZE, LM_HEAD_SCHEMES[bits])
            weights = self._sources.rounded(source, arch.lm_head, *sizes, "lm_head")
            self._w4a16(arch.lm_head, normed, weights, bits, None, logits)

    def _linear(self, layer: int, name: str, x: gs.Variable) -> gs.Variable:
        """x W^T (+ b) [B, S, out]: W4A16Linear if the checkpoint has it quantized, or MatMul."""
        linear = next(item for item in self._decoder.linears(layer) if item.name == name)
        full = f"{self._decoder.layer_prefix(layer)}.{name}"
        output = self._builder.variable(
            f"{module_path(full)}/output_0", self._dtype, (BATCH, SEQUENCE, linear.out_features)
        )
        bias = None
        if linear.bias:
            bias = self._builder.weight(
                self._sources.dense(f"{full}.bias", f"{full}.bias", self._dtype, "blocks")
            )
        if not self._checkpoint.is_quantized(full):
            self._matmul(full, f"{full}.weight", x, "blocks", output, bias)
            return output
        weights = self._sources.quantized(full, "blocks")
        bits = self._checkpoint.linear_format(full).bits
        self._w4a16(full, x, weights, bits, bias, output)
        return output

    def _w4a16(
        self,
        module: str,
        x: gs.Variable,
        weights: QuantizedWeights,
        bits: int,
        bias: gs.Constant | None,
        output: gs.Variable,
    ) -> None:
        codes, scales, _ = weights
        out_features, in_features = codes.shape
        attributes = {
            "bits": bits,
            "group_size": in_features // scales.shape[1],
            "in_features": in_features,
            "out_features": out_features,
            "layout_version": LOGICAL_LAYOUT,
        }
        tensors = [None if weight is None else self._builder.weight(weight) for weight in weights]
        path = f"{module_path(module)}/W4A16Linear"
        self._builder.node("W4A16Linear", path, [x, *tensors, bias], [output], attributes, DOMAIN)

    def _matmul(
        self,
        module: str,
        source: str,
        x: gs.Variable,
        part: Part,
        output: gs.Variable,
        bias: gs.Constant | None = None,
    ) -> None:
        """An unquantized linear: x ─ MatMul(W^T) ─ (Add(bias))."""
        path = module_path(module)
        weight = self._sources.transposed(source, f"{module}.weight_t", self._dtype, part)
        inputs = [x, self._builder.weight(weight)]
        if bias is None:
            self._builder.node("MatMul", f"{path}/MatMul", inputs, [output])
            return
        (product,) = self._builder.node(
            "MatMul", f"{path}/MatMul", inputs, [(self._dtype, output.shape)]
        )
        self._builder.node("Add", f"{path}/Add", [product, bias], [output])

    def _norm(self, x: gs.Variable, module: str, part: Part) -> gs.Variable:
        """RMSNormalization over the last axis, statistics in float32."""
        weight = self._sources.dense(f"{module}.weight", f"{module}.weight", self._dtype, part)
        (output,) = self._builder.node(
            "RMSNormalization",
            f"{module_path(module)}/RMSNormalization",
            [x, self._builder.weight(weight)],
            [(self._dtype, x.shape)],
            {"axis": -1, "epsilon": self._decoder.norm_eps, "stash_type": FLOAT32},
        )
        return output

    def _head_norm(self, x: gs.Variable, module: str, heads: int) -> gs.Variable:
        """[B, S, heads * size] ─ Reshape ─ RMSNormalization of each head ─ Reshape."""
        size, path = self._decoder.head_size, module_path(module)
        split: Dims = (BATCH, SEQUENCE, heads, size)
        shape = self._builder.inline(f"shape.{heads}x{size}", [0, 0, heads, size])
        (by_head,) = self._builder.node(
            "Reshape", f"{path}/split/Reshape", [x, shape], [(self._dtype, split)]
        )
        normed = self._norm(by_head, module, "blocks")
        shape = self._builder.inline(f"shape.{heads * size}", [0, 0, heads * size])
        (joined,) = self._builder.node(
            "Reshape", f"{path}/join/Reshape", [normed, shape], [(self._dtype, x.shape)]
        )
        return joined

    def _add(self, name: str, a: gs.Variable, b: gs.Variable) -> gs.Variable:
        (output,) = self._builder.node("Add", name, [a, b], [(self._dtype, a.shape)])
        return output


_CACHE_PARTS = ("key", "value")
