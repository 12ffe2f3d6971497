"""Keys of a GGUF file that describe the model: its sizes, its rotation, where it comes from."""

from __future__ import annotations

from gguf import GGML_QUANT_VERSION, GGUFType, GGUFWriter, LlamaFileType, RopeScalingType
from gguf import GGMLQuantizationType as GgufType

from awq_edge._version import __version__
from awq_edge.artifacts.gguf_header import MADE_BY
from awq_edge.exporter.gguf.checks import llama_cpp_of, longest_context
from awq_edge.model.archs import Decoder
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.rope import frequencies

_FILE_TYPES = {
    GgufType.Q4_0: LlamaFileType.MOSTLY_Q4_0,
    GgufType.Q4_1: LlamaFileType.MOSTLY_Q4_1,
    GgufType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    GgufType.F16: LlamaFileType.MOSTLY_F16,
    GgufType.BF16: LlamaFileType.MOSTLY_BF16,
    GgufType.F32: LlamaFileType.ALL_F32,
}
_ROPE_AXES = 4  # numbers of rope.dimension_sections
_METHOD, _FORMAT = "awq_edge.method", "awq_edge.format"


def add_metadata(
    writer: GGUFWriter, checkpoint: Checkpoint, name: str, main_type: GgufType
) -> None:
    """Add every key but the tokenizer's.

    name: of the model. main_type: of most weights of the blocks.
    """
    writer.add_type(GGUFType.MODEL)
    writer.add_name(name)
    # First, so that a reader need not pass the vocabulary.
    writer.add_string(MADE_BY, __version__)
    quantization = checkpoint.quantization
    if quantization is not None:
        writer.add_quantized_by(f"awq-edge {__version__}")
        writer.add_string(_METHOD, quantization.method)
        writer.add_string(_FORMAT, str(checkpoint.main_format))
    writer.add_file_type(_FILE_TYPES[main_type])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    _add_sizes(writer, checkpoint.decoder)
    _add_rotation(writer, checkpoint.decoder)


def _add_sizes(writer: GGUFWriter, decoder: Decoder) -> None:
    target = llama_cpp_of(decoder)
    writer.add_vocab_size(decoder.vocab_size)
    writer.add_context_length(longest_context(decoder, target))
    writer.add_embedding_length(decoder.hidden_size)
    writer.add_block_count(decoder.num_layers)
    writer.add_feed_forward_length(decoder.intermediate_size)
    writer.add_head_count(decoder.num_heads)
    writer.add_head_count_kv(decoder.num_kv_heads)
    writer.add_key_length(decoder.head_size)
    writer.add_value_length(decoder.head_size)
    writer.add_layer_norm_rms_eps(decoder.norm_eps)
    if decoder.moe is not None:
        writer.add_expert_count(decoder.moe.num_experts)
        writer.add_expert_used_count(decoder.moe.experts_per_token)
        writer.add_expert_feed_forward_length(decoder.moe.intermediate_size)
    windows = [window for window in decoder.windows if window is not None]
    if target.full_attention_every is not None and windows:
        writer.add_sliding_window(windows[0])
    if decoder.attention_softcap is not None:
        writer.add_attn_logit_softcapping(decoder.attention_softcap)
    if decoder.logits_softcap is not None:
        writer.add_final_logit_softcapping(decoder.logits_softcap)
    if target.writes_multipliers:
        writer.add_attention_scale(decoder.attention_scale)
        writer.add_embedding_scale(decoder.embedding_scale)
        writer.add_residual_scale(decoder.residual_scale)
        writer.add_logit_scale(decoder.logits_divisor)


def _add_rotation(writer: GGUFWriter, decoder: Decoder) -> None:
    rope = decoder.rope
    writer.add_rope_dimension_count(rope.rotary_size)
    writer.add_rope_freq_base(rope.theta)
    if decoder.architecture.local_rope_theta is not None:
        writer.add_rope_freq_base_swa(decoder.local_rope.theta)
    if rope.sections:
        padded = (*rope.sections, *[0] * (_ROPE_AXES - len(rope.sections)))
        writer.add_rope_dimension_sections(padded)
    if rope.original_max_positions is not None and rope.kind in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(rope.original_max_positions)
    if rope.kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.parameter("factor"))
    elif rope.kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope.parameter("factor"))
        writer.add_rope_scaling_yarn_beta_fast(rope.parameter("beta_fast", 32.0))
        writer.add_rope_scaling_yarn_beta_slow(rope.parameter("beta_slow", 1.0))
    elif rope.kind == "longrope":
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        _, factor = frequencies(rope, decoder.max_positions)
        writer.add_rope_scaling_attn_factors(factor)
