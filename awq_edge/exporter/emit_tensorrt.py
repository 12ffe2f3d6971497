"""A program in TensorRT's layers and nodes of our plugin.

    quantized linears   plugin: W4A16Linear in the layout of the kernels, silu(gate) * up in its
                        epilogue; native: DequantizeLinear of INT4 or INT8 groups, MatMul
    attention           plugin: CachedAttention, q, k and v in one where they are merged, norms of
                        heads inside; native: RotaryEmbedding, TensorScatter, Attention with a mask
    opset 17            what came later is in its primitives, for TensorRT before 10.15

`--linear` and `--attention` choose. `awq_edge/tensorrt/contract.py` is what the plugin takes.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from awq_edge.exporter.emit_graph import GraphEmitter
from awq_edge.exporter.graph import (
    BATCH,
    SEQUENCE,
    Operand,
    module_path,
)
from awq_edge.exporter.native_attention import NativeAttention
from awq_edge.exporter.primitive_nodes import PrimitiveAttention, Primitives
from awq_edge.exporter.spec import GraphSpec
from awq_edge.kernels.interface import LAYOUT_VERSION, Epilogue
from awq_edge.program.program import Attention, Program
from awq_edge.program.storage import Storage
from awq_edge.program.stored import StoredLinear
from awq_edge.recipe.recipes import ExportDefaults
from awq_edge.tensorrt.contract import (
    CACHED_ATTENTION,
    DOMAIN,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    W4A16_LINEAR,
)
from awq_edge.tensorrt.op_contract import Number, Op

# The opset of RMSNormalization, RotaryEmbedding and Attention.
FIRST_WITH_ATTENTION = 23


class TensorRtEmitter(GraphEmitter):
    routes_experts = False

    def __init__(
        self,
        program: Program,
        storage: Storage,
        spec: GraphSpec,
        opset: int,
        forms: ExportDefaults,
    ) -> None:
        """forms: of linears and attention."""
        super().__init__(program, storage, spec, opset)
        self._is_primitive = opset < FIRST_WITH_ATTENTION
        self._forms = forms
        self._primitives = Primitives(self)
        self._native = NativeAttention(self)
        self._apart = PrimitiveAttention(self, self._native.positions)

    def begin(self) -> None:
        """Nothing: positions and masks are made where they are read first."""

    def quantized(
        self, stored: StoredLinear, x: gs.Variable, output: gs.Variable | None
    ) -> gs.Variable:
        if self._forms.linear == "native":
            return self._dequantized(stored, x, output)
        result = self.output_of(stored, x, output)
        tensors = stored.tensors
        given: dict[str, Number] = {
            "bits": stored.bits or 0,
            "group_size": stored.group_size,
            "in_features": stored.in_features,
            "out_features": stored.out_features,
            "layout_version": LAYOUT_VERSION,
            "has_zeros": int("zeros" in tensors),
            "has_bias": int("bias" in tensors),
            "epilogue": int(Epilogue.SILU_MUL if stored.gate_up else Epilogue.NONE),
        }
        roles = ("qweight", "scales", "zeros", "bias")
        weights = [self.builder.weight(tensors[role]) for role in roles if role in tensors]
        name = f"{module_path(stored.name)}/W4A16Linear"
        self._plugin_node(W4A16_LINEAR, name, [x, *weights], [result], given)
        return result

    def _dequantized(
        self, stored: StoredLinear, x: gs.Variable, output: gs.Variable | None
    ) -> gs.Variable:
        """
        codes INT4 [in, out] ──────────┐
        scales [in / group, out] ─ DequantizeLinear ─┐
        x [..., in] ────────────────────────────── MatMul ─ (Add) ─ [..., out]
        """
        codes, scales = (self.builder.weight(stored.tensors[role]) for role in ("codes", "scales"))
        name = f"{module_path(stored.name)}/DequantizeLinear"
        attributes = {"axis": 0, "block_size": stored.group_size}
        weight = self.op(name, [codes, scales], codes.shape, attributes)
        return self.matmul(stored, x, weight, output)

    def attend(
        self,
        attention: Attention,
        x: gs.Variable,
        past: Sequence[gs.Variable],
        present: Sequence[gs.Variable],
    ) -> gs.Variable:
        stored = self.storage.linears(attention.qkv)
        if self._forms.attention == "plugin":
            return self._plugin_attention(attention, stored, x, past, present)
        q, k, v = self._normed(attention, self.split(attention.qkv, stored, x))
        apart = self._is_primitive or attention.soft_cap is not None
        layers = self._apart if apart else self._native
        return layers.attend(attention, (q, k, v), past, present)

    def _plugin_attention(
        self,
        attention: Attention,
        stored: Sequence[StoredLinear],
        x: gs.Variable,
        past: Sequence[gs.Variable],
        present: Sequence[gs.Variable],
    ) -> gs.Variable:
        """(merged q k v, or q, k, v) ─ CachedAttention ─ [B, S, heads * size]"""
        window = attention.window or 0
        given: dict[str, Number] = {
            "num_heads": attention.num_heads,
            "num_kv_heads": attention.num_kv_heads,
            "head_size": attention.head_size,
            "rotary_size": self.rotary_size(attention),
            "scale": attention.scale,
            "window": window if window < self.context else 0,
            "soft_cap": attention.soft_cap or 0.0,
        }
        norms: list[gs.Constant] = []
        if self.turns is None and attention.q_norm is not None and attention.k_norm is not None:
            pair = (attention.q_norm, attention.k_norm)
            norms = [self.builder.weight(self.storage.norm(norm)[0]) for norm in pair]
            given |= {"qk_norm": 1, "norm_eps": attention.q_norm.eps}
        inputs: list[Operand]
        if len(stored) == 1 and self.turns is None:
            given["merged_qkv"] = 1
            inputs = [self.stored(stored[0], x)]
        else:
            apart = self.split(attention.qkv, stored, x)
            inputs = list(apart if norms else self._normed(attention, apart))
        tables = self.tables(attention.rotation)
        inputs += [self.past_length, *tables, *past, *norms]
        shape = (BATCH, SEQUENCE, attention.num_heads * attention.head_size)
        name = f"{module_path(attention.name)}/CachedAttention"
        output = self.builder.variable(f"{name}/output_0", self.dtype, shape)
        self._plugin_node(CACHED_ATTENTION, name, inputs, [output, *present], given)
        return output

    def _normed(
        self, attention: Attention, parts: Sequence[gs.Variable]
    ) -> tuple[gs.Variable, gs.Variable, gs.Variable]:
        """q and k with the norms of their heads, turned where each token has its own rotation."""
        q, k, v = parts
        q = self.head_norm(attention.q_norm, q, attention.num_heads)
        k = self.head_norm(attention.k_norm, k, attention.num_kv_heads)
        if self.turns is not None:
            path = module_path(attention.name)
            q = self._turned(f"{path}/q", q, attention.num_heads, attention.head_size)
            k = self._turned(f"{path}/k", k, attention.num_kv_heads, attention.head_size)
        return q, k, v

    def _turned(self, path: str, x: gs.Variable, heads: int, size: int) -> gs.Variable:
        """x [B, S, heads * size], each token turned by its row of the tables."""
        assert self.turns is not None
        path = f"{path}/RotaryEmbedding"
        rotary = 2 * int(self.turns[0].shape[-1])
        if self._is_primitive:
            return self._primitives.rotary(path.rpartition("/")[0], x, self.turns, heads, size)
        attributes = {"num_heads": heads, "interleaved": 0}
        if rotary != size:
            attributes["rotary_embedding_dim"] = rotary
        return self.op(path, [x, *self.turns], x.shape, attributes)

    def rms_norm(
        self, path: str, x: gs.Variable, weight: gs.Constant, epsilon: float
    ) -> gs.Variable:
        if self._is_primitive:
            return self._primitives.rms_norm(path, x, weight, epsilon)
        return super().rms_norm(path, x, weight, epsilon)

    def gelu(self, path: str, x: gs.Variable, approximate: str) -> gs.Variable:
        if self._is_primitive:
            return self._primitives.gelu(path, x, tanh=approximate == "tanh")
        return super().gelu(path, x, approximate)

    def _plugin_node(
        self,
        op: Op,
        name: str,
        inputs: Sequence[Operand],
        outputs: Sequence[gs.Variable],
        given: dict[str, Number],
    ) -> None:
        """Append a node of the plugin; attributes outside the contract raise ConfigError here
        already, not when TensorRT parses it. Defaults are written too: its parser warns about each
        that is not."""
        values = op.read(given)
        op.check_count(values, len(inputs))
        identity = {"plugin_version": PLUGIN_VERSION, "plugin_namespace": PLUGIN_NAMESPACE}
        self.builder.node(op.name, name, inputs, outputs, values | identity, DOMAIN)
