"""From a checkpoint to the canonical graph.

    input_ids ─ Gather(embedding) ─ block 0 ─ ... ─ block n-1 ─ rows of logits_positions ─ norm ─┐
    past_length, past.{i}.* ────────┴────── present.{i}.*          logits ◄──── lm_head ◄────────┘

docs/graph.md specifies inputs, outputs and the two operators.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import (
    ACTIVATION_DTYPES,
    BATCH,
    CANONICAL_OPSET,
    POSITIONS,
    SEQUENCE,
    DecoderGraph,
    GraphBuilder,
    module_path,
)
from awq_edge.exporter.parts.attention import attention
from awq_edge.exporter.parts.building import INT64, Building
from awq_edge.exporter.parts.embedding import embedding, first_hidden
from awq_edge.exporter.parts.experts import experts
from awq_edge.exporter.parts.logits import logits
from awq_edge.exporter.parts.mlp import mlp
from awq_edge.exporter.parts.norms import norm
from awq_edge.exporter.parts.rotation import TokenTables, token_tables
from awq_edge.exporter.sources import Sources
from awq_edge.exporter.spec import GraphSpec
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.lm_head import LM_HEAD_GROUP_SIZE, rounded_bits


def build_canonical_graph(checkpoint: Checkpoint, spec: GraphSpec) -> DecoderGraph:
    """The canonical graph of a checkpoint. Reads no weight but, where its type depends on it,
    the embedding.

    Raises ModelError when a weight cannot be read.
    """
    decoder, dtype = checkpoint.decoder, ACTIVATION_DTYPES[spec.activation_dtype]
    result = DecoderGraph(gs.Graph(name=decoder.model_type, opset=CANONICAL_OPSET))
    builder = GraphBuilder(result)
    building = Building(checkpoint, builder, Sources(checkpoint), spec.context, dtype)
    past_length = builder.variable("past_length", INT64, (BATCH,))
    positions = builder.variable("logits_positions", INT64, (BATCH, POSITIONS))
    output = builder.variable("logits", dtype, (BATCH, POSITIONS, decoder.vocab_size))
    result.graph.inputs = [past_length, positions]
    result.graph.outputs = [output]
    embeddings, turns = _inputs(building, spec.takes_embeddings)
    hidden = first_hidden(building, embeddings, past_length)
    for layer in range(decoder.num_layers):
        hidden = _block(building, layer, hidden, past_length, turns)
    logits(building, hidden, positions, spec.lm_head_bits, output)
    return result


def build_embedding_graph(checkpoint: Checkpoint, spec: GraphSpec) -> DecoderGraph:
    """The graph from token ids to the embeddings that another graph takes in their place:
    input_ids int64 [B, S] -> inputs_embeds [B, S, embedding_size]."""
    dtype = ACTIVATION_DTYPES[spec.activation_dtype]
    result = DecoderGraph(gs.Graph(name="embedding", opset=CANONICAL_OPSET))
    builder = GraphBuilder(result)
    building = Building(checkpoint, builder, Sources(checkpoint), spec.context, dtype)
    input_ids = builder.variable("input_ids", INT64, (BATCH, SEQUENCE))
    result.graph.inputs = [input_ids]
    embeddings = embedding(building, input_ids)
    embeddings.name = "inputs_embeds"
    result.graph.outputs = [embeddings]
    return result


def _inputs(building: Building, takes_embeddings: bool) -> tuple[gs.Variable, TokenTables | None]:
    """The inputs that stand for the tokens of a call: their embeddings, and for positions with
    several axes the rotation of each token.

    input_ids ─ embedding          or, so that they may be an image's:
    inputs_embeds                  position_ids ─ cosine and sine of every token
    """
    builder, inputs = building.builder, building.builder.target.graph.inputs
    if not takes_embeddings:
        input_ids = builder.variable("input_ids", INT64, (BATCH, SEQUENCE))
        inputs.insert(0, input_ids)
        return embedding(building, input_ids), None
    shape = (BATCH, SEQUENCE, building.decoder.embedding_size)
    inputs.insert(0, builder.variable("inputs_embeds", building.dtype, shape))
    axes = len(building.decoder.rope.sections)
    if not axes:
        return inputs[0], None
    position_ids = builder.variable("position_ids", INT64, (axes, BATCH, SEQUENCE))
    inputs.append(position_ids)
    return inputs[0], token_tables(building, position_ids)


def lm_head_bits(checkpoint: Checkpoint, asked: int) -> int:
    """The bits that lm_head gets where `asked` are asked for (16: unquantized).

    A quantized one stays as it is; groups that do not fit leave it unquantized.
    """
    decoder, lm_head = checkpoint.decoder, checkpoint.decoder.architecture.lm_head
    if checkpoint.is_quantized(lm_head):
        return checkpoint.linear_format(lm_head).bits
    return rounded_bits(decoder.embedding_size, asked)


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
            f"in_features {decoder.embedding_size} is not a multiple of group_size "
            f"{LM_HEAD_GROUP_SIZE}"
        )
    return reasons


def _block(
    building: Building,
    layer: int,
    x: gs.Variable,
    past_length: gs.Variable,
    turns: TokenTables | None,
) -> gs.Variable:
    """One decoder block; norms in parentheses where an architecture has them, as a residual
    multiplier before each sum. Where norms do not stand first, they stand after the sums.

    ┌───────────────────────────────────────────┐ ┌────────────────────────────────────┐
    x ─ attention_norm ─ attention ─ (post norm) ─ Add ─ mlp_norm ─ mlp, experts ─ (post norm) ─ Add
    """
    decoder, arch = building.decoder, building.arch
    prefix = decoder.layer_prefix(layer)
    normed = _norm(building, prefix, arch.attention_norm, x) if decoder.norm_first else x
    output = attention(building, layer, normed, past_length, turns)
    output = _norm(building, prefix, arch.attention_post_norm, output)
    output = _residual_scaled(building, f"{prefix}.attention", output)
    x = building.op(f"{module_path(prefix)}/attention/Add", [x, output], x.shape)
    normed = _norm(
        building, prefix, arch.mlp_norm if decoder.norm_first else arch.attention_norm, x
    )
    x = x if decoder.norm_first else normed
    output = (experts if decoder.has_experts(layer) else mlp)(building, layer, normed)
    output = _norm(building, prefix, arch.mlp_post_norm, output)
    output = _residual_scaled(building, f"{prefix}.mlp", output)
    x = building.op(f"{module_path(prefix)}/mlp/Add", [x, output], x.shape)
    return x if decoder.norm_first else _norm(building, prefix, arch.mlp_norm, x)


def _residual_scaled(building: Building, module: str, x: gs.Variable) -> gs.Variable:
    """A block's output, times the residual multiplier."""
    scale = building.decoder.residual_scale
    return building.scaled(f"{module_path(module)}/residual_scale", x, "residual.scale", scale)


def _norm(building: Building, prefix: str, name: str | None, x: gs.Variable) -> gs.Variable:
    """A norm of a block; x itself where there is none."""
    return x if name is None else norm(building, x, f"{prefix}.{name}", "blocks")
