"""From a program to an ONNX graph: the walk, and the nodes that are alike in every runtime.

    input_ids ─ Gather(embedding) ─ block 0 ─ ... ─ block n-1 ─ rows of logits_positions ─ norm ─┐
    past_length, past.{i}.* ────────┴────── present.{i}.*          logits ◄──── lm_head ◄────────┘

A runtime's emitter says what a quantized linear and an attention become, and what else it has nodes
of its own for. docs/graph.md has the tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import onnx_graphsurgeon as gs

from awq_edge.exporter.end_nodes import embedding_nodes, first_hidden, output_nodes
from awq_edge.exporter.expert_nodes import expert_nodes
from awq_edge.exporter.graph import (
    BATCH,
    FLOAT32,
    INT64,
    ONNX_TYPES,
    POSITIONS,
    SEQUENCE,
    DecoderGraph,
    Dims,
    GraphBuilder,
    Operand,
    module_path,
)
from awq_edge.exporter.rotation_nodes import TokenTables, token_tables
from awq_edge.exporter.spec import GraphSpec
from awq_edge.program.program import (
    Attention,
    Experts,
    Linear,
    LinearGroup,
    Mlp,
    Norm,
    Program,
    RotationName,
    Sublayer,
)
from awq_edge.program.storage import Storage
from awq_edge.program.stored import StoredLinear
from awq_edge.program.weights import numpy_type

_CACHE_PARTS = ("key", "value")
# Gelu's attribute `approximate`, by the activation's name in config.json.
_GELU = {"gelu_pytorch_tanh": "tanh", "gelu": "none"}


class GraphEmitter(ABC):
    """Emits one program. dtype: of the activations, of onnx.TensorProto."""

    # Whether experts compute the tokens that are sent to them, or all.
    routes_experts: bool

    def __init__(self, program: Program, storage: Storage, spec: GraphSpec, opset: int) -> None:
        self.program = program
        self.storage = storage
        self.context = spec.context
        self.dtype = ONNX_TYPES[storage.form.dtype]
        self.target = DecoderGraph(gs.Graph(name=program.model_type, opset=opset))
        self.builder = GraphBuilder(self.target)
        self._takes_embeddings = spec.takes_embeddings
        self.past_length = self.builder.variable("past_length", INT64, (BATCH,))
        # The hidden state, and what is still to be added to it, with the name of the sum.
        self._hidden: gs.Variable
        self._branch: tuple[gs.Variable, str] | None = None
        # Of every token, where its position is not its place in the cache.
        self.turns: TokenTables | None = None

    @abstractmethod
    def quantized(
        self, stored: StoredLinear, x: gs.Variable, output: gs.Variable | None
    ) -> gs.Variable:
        """A quantized linear of x. output: a variable that exists, or None for a new one."""

    @abstractmethod
    def attend(
        self,
        attention: Attention,
        x: gs.Variable,
        past: Sequence[gs.Variable],
        present: Sequence[gs.Variable],
    ) -> gs.Variable:
        """Attention over the cache [B, S, heads * head_size], without the linear behind it."""

    def emit(self) -> DecoderGraph:
        """The graph of the program."""
        program, builder, graph = self.program, self.builder, self.target.graph
        positions = builder.variable("logits_positions", INT64, (BATCH, POSITIONS))
        logits = builder.variable("logits", self.dtype, (BATCH, POSITIONS, program.vocab_size))
        graph.inputs, graph.outputs = [self.past_length, positions], [logits]
        self._hidden = first_hidden(self, self._inputs())
        self.begin()
        for layer, block in enumerate(program.blocks):
            for sublayer in block.sublayers:
                self._sublayer(sublayer, layer)
        if self._branch is not None:
            branch, name = self._branch
            self._hidden = self.op(name, [self._hidden, branch], self._hidden.shape)
        output_nodes(self, self._hidden, positions, logits)
        return self.target

    def emit_embedding(self) -> DecoderGraph:
        """The graph from token ids to the embeddings that another graph takes in their place:
        input_ids int64 [B, S] -> inputs_embeds [B, S, embedding_size]."""
        input_ids = self.builder.variable("input_ids", INT64, (BATCH, SEQUENCE))
        embeddings = embedding_nodes(self, input_ids)
        embeddings.name = "inputs_embeds"
        self.target.graph.inputs, self.target.graph.outputs = [input_ids], [embeddings]
        return self.target

    @abstractmethod
    def begin(self) -> None:
        """Nodes that the layers share, behind the embedding."""

    def _inputs(self) -> gs.Variable:
        """The inputs that stand for the tokens of a call: their embeddings, and for positions with
        several axes the rotation of each token.

        input_ids ─ embedding          or, so that they may be an image's:
        inputs_embeds                  position_ids ─ cosine and sine of every token
        """
        builder, inputs = self.builder, self.target.graph.inputs
        if not self._takes_embeddings:
            inputs.insert(0, builder.variable("input_ids", INT64, (BATCH, SEQUENCE)))
            return embedding_nodes(self, inputs[0])
        shape = (BATCH, SEQUENCE, self.program.embedding.table.shape[1])
        embeddings = builder.variable("inputs_embeds", self.dtype, shape)
        inputs.insert(0, embeddings)
        axes = len(self.program.position_axes)
        if axes:
            position_ids = builder.variable("position_ids", INT64, (axes, BATCH, SEQUENCE))
            inputs.append(position_ids)
            self.turns = token_tables(self, position_ids)
        return embeddings

    def _sublayer(self, sublayer: Sublayer, layer: int) -> None:
        """(norm) ─ mixer ─ (norm) ─ (Mul); what is left to be added to the hidden state."""
        x = self._hidden if sublayer.norm is None else self._summed(sublayer.norm)
        mixer = sublayer.mixer
        if isinstance(mixer, Attention):
            y = self._attention(mixer, layer, x)
        elif isinstance(mixer, Experts):
            y = expert_nodes(self, mixer, x)
        else:
            y = self._mlp(mixer, x)
        if sublayer.post_norm is not None:
            y = self.norm(sublayer.post_norm, y)
        path = module_path(sublayer.name)
        y = self.scaled(f"{path}/residual_scale", y, "residual.scale", sublayer.residual_scale)
        self._branch = (y, f"{path}/Add")
        if sublayer.end_norm is not None:
            self._hidden = self._summed(sublayer.end_norm)

    def _summed(self, norm: Norm) -> gs.Variable:
        """The norm of the hidden state, with the branch added to it first."""
        branch, self._branch = self._branch, None
        if branch is None:
            return self.norm(norm, self._hidden)
        self._hidden, normed = self.add_norm(norm, self._hidden, *branch)
        return normed

    def add_norm(
        self, norm: Norm, hidden: gs.Variable, branch: gs.Variable, name: str
    ) -> tuple[gs.Variable, gs.Variable]:
        """hidden + branch, and its norm. name: of the sum."""
        total = self.op(name, [hidden, branch], hidden.shape)
        return total, self.norm(norm, total)

    def _attention(self, attention: Attention, layer: int, x: gs.Variable) -> gs.Variable:
        """Attention of one block, [B, S, hidden]; adds its cache to inputs and outputs."""
        builder, graph = self.builder, self.target.graph
        cache = (BATCH, attention.num_kv_heads, self.context, attention.head_size)
        past, present = (
            [builder.variable(f"{when}.{layer}.{part}", self.dtype, cache) for part in _CACHE_PARTS]
            for when in ("past", "present")
        )
        graph.inputs.extend(past)
        graph.outputs.extend(present)
        return self.linear(attention.out, self.attend(attention, x, past, present))

    def _mlp(self, mlp: Mlp, x: gs.Variable) -> gs.Variable:
        return self.linear(mlp.out, self.gated(mlp, x))

    def gated(self, mlp: Mlp, x: gs.Variable) -> gs.Variable:
        """The input of an MLP's second linear.

            ┌─ gate_proj ─ activation ─┐
        x ──┤                         Mul       or      x ─ fc1 ─ activation
            └─ up_proj ────────────────┘
        """
        path, gate = module_path(mlp.name), mlp.activation if mlp.is_gated else None
        stored = self.storage.linears(mlp.inputs, gate)
        if stored[0].gate_up:  # the epilogue has multiplied
            return self.quantized(stored[0], x, None)
        first, *up = self.split(mlp.inputs, stored, x)
        result = self.activated(path, first, mlp.activation)
        return self.op(f"{path}/Mul", [result, up[0]], first.shape) if up else result

    def activated(self, path: str, x: gs.Variable, activation: str) -> gs.Variable:
        """An activation; SiLU as Sigmoid and Mul, which every runtime has."""
        path = f"{path}/activation"
        if activation == "silu":
            sigmoid = self.op(f"{path}/Sigmoid", [x], x.shape)
            return self.op(f"{path}/Mul", [x, sigmoid], x.shape)
        if activation == "relu":
            return self.op(f"{path}/Relu", [x], x.shape)
        return self.gelu(path, x, _GELU[activation])

    def gelu(self, path: str, x: gs.Variable, approximate: str) -> gs.Variable:
        return self.op(f"{path}/Gelu", [x], x.shape, {"approximate": approximate})

    def norm(self, norm: Norm, x: gs.Variable) -> gs.Variable:
        """A norm over the last axis of x, statistics in float32."""
        weights = [self.builder.weight(weight) for weight in self.storage.norm(norm)]
        path = module_path(norm.name)
        if norm.kind == "rms":
            return self.rms_norm(path, x, weights[0], norm.eps)
        attributes = {"axis": -1, "epsilon": norm.eps, "stash_type": FLOAT32}
        return self.op(f"{path}/LayerNormalization", [x, *weights], x.shape, attributes)

    def rms_norm(
        self, path: str, x: gs.Variable, weight: gs.Constant, epsilon: float
    ) -> gs.Variable:
        attributes = {"axis": -1, "epsilon": epsilon, "stash_type": FLOAT32}
        return self.op(f"{path}/RMSNormalization", [x, weight], x.shape, attributes)

    def head_norm(self, norm: Norm | None, x: gs.Variable, heads: int) -> gs.Variable:
        """[B, S, heads * size] ─ Reshape ─ norm of each head ─ Reshape; x without a norm."""
        if norm is None:
            return x
        builder, path, size = self.builder, module_path(norm.name), norm.weight.shape[0]
        split: Dims = (BATCH, SEQUENCE, heads, size)
        shape = builder.inline(f"shape.{heads}x{size}", [0, 0, heads, size])
        normed = self.norm(norm, self.op(f"{path}/split/Reshape", [x, shape], split))
        shape = builder.inline(f"shape.{heads * size}", [0, 0, heads * size])
        return self.op(f"{path}/join/Reshape", [normed, shape], x.shape)

    def linear(
        self, linear: Linear, x: gs.Variable, output: gs.Variable | None = None
    ) -> gs.Variable:
        """x W^T (+ b) [..., out]"""
        return self.stored(self.storage.linear(linear), x, output)

    def stored(
        self, stored: StoredLinear, x: gs.Variable, output: gs.Variable | None = None
    ) -> gs.Variable:
        """Linears of x that are one."""
        if stored.bits is not None:
            return self.quantized(stored, x, output)
        return self.matmul(stored, x, self.builder.weight(stored.tensors["weight"]), output)

    def matmul(
        self, stored: StoredLinear, x: gs.Variable, weight: Operand, output: gs.Variable | None
    ) -> gs.Variable:
        """x ─ MatMul(weight [in, out]) ─ (Add(bias))"""
        path, bias = module_path(stored.name), stored.tensors.get("bias")
        result = self.output_of(stored, x, output)
        if bias is None:
            self.builder.node("MatMul", f"{path}/MatMul", [x, weight], [result])
            return result
        product = self.op(f"{path}/MatMul", [x, weight], result.shape)
        self.builder.node("Add", f"{path}/Add", [product, self.builder.weight(bias)], [result])
        return result

    def output_of(
        self, stored: StoredLinear, x: gs.Variable, output: gs.Variable | None
    ) -> gs.Variable:
        """The variable that a linear of x computes."""
        if output is not None:
            return output
        rows = stored.out_features // (2 if stored.gate_up else 1)
        name = f"{module_path(stored.name)}/output_0"
        return self.builder.variable(name, self.dtype, (*x.shape[:-1], rows))

    def split(
        self, group: LinearGroup, stored: Sequence[StoredLinear], x: gs.Variable
    ) -> list[gs.Variable]:
        """Outputs of linears that read one input, apart:

            ┌─ q_proj                            ┌─ q
        x ──┼─ k_proj    or    x ─ q+k+v ─ Split ┼─ k
            └─ v_proj                            └─ v
        """
        outputs: dict[int, gs.Variable] = {}
        for each in stored:
            places = range(len(group.sizes)) if group.is_fused else each.places
            outputs |= dict(
                zip(places, self._split_one(group, each, self.stored(each, x)), strict=True)
            )
        return [outputs[place] for place in sorted(outputs)]

    def _split_one(
        self, group: LinearGroup, stored: StoredLinear, y: gs.Variable
    ) -> list[gs.Variable]:
        """The outputs within the rows of one linear."""
        places = range(len(group.sizes)) if group.is_fused else stored.places
        if len(places) == 1:
            return [y]
        sizes = [group.sizes[place] for place in places]
        split = self.builder.inline(f"split.{'+'.join(map(str, sizes))}", sizes)
        outputs = [(self.dtype, (*y.shape[:-1], size)) for size in sizes]
        path = module_path(stored.name)
        return self.builder.node("Split", f"{path}/Split", [y, split], outputs, {"axis": -1})

    def tables(self, name: RotationName | None) -> list[gs.Constant]:
        """Cosine and sine [context, rotary_size / 2], once for all layers that share them; none
        where positions are learned, or turned by token."""
        if name is None or self.turns is not None:
            return []
        rope = dict(self.program.rotations)[name]
        weights = self.storage.rotation(name, rope, self.context)
        return [self.builder.weight(weight) for weight in weights]

    def rotary_size(self, attention: Attention) -> int:
        """Channels of a head that the attention itself rotates."""
        if attention.rotation is None or self.turns is not None:
            return 0
        return dict(self.program.rotations)[attention.rotation].rotary_size

    def op(
        self,
        name: str,
        inputs: Sequence[Operand],
        shape: Dims,
        attributes: dict[str, Any] | None = None,
        dtype: int | None = None,
        domain: str | None = None,
    ) -> gs.Variable:
        """A node of one output, of the operator that its name ends in: "/model/norm/Add".

        shape: of the output. dtype: of the output; None for that of the activations.
        """
        result = (self.dtype if dtype is None else dtype, shape)
        kind = name.rpartition("/")[2]
        (output,) = self.builder.node(kind, name, inputs, [result], attributes, domain)
        return output

    def cast(self, path: str, x: gs.Variable, dtype: int) -> gs.Variable:
        """x in another type; x itself where it has it."""
        if x.dtype == dtype:
            return x
        return self.op(f"{path}/Cast", [x], x.shape, {"to": dtype}, dtype)

    def scaled(self, path: str, x: gs.Variable, name: str, factor: float) -> gs.Variable:
        """x times a factor, whose constant is called `name`; x itself for a factor of 1."""
        if factor == 1.0:
            return x
        constant = self.builder.inline(name, factor, numpy_type(self.storage.form.dtype))
        return self.op(f"{path}/Mul", [x, constant], x.shape)
