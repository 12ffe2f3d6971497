"""What llama.cpp computes of a model: refused is what it would compute otherwise, or not load."""

from __future__ import annotations

from collections.abc import Iterator

from awq_edge.errors import ModelError
from awq_edge.model.archs import Decoder, architectures
from awq_edge.model.archs.llama_cpp import LlamaCpp, Presence
from awq_edge.model.checkpoint import Checkpoint

_NEARLY = 1e-5  # relative; scales are computed in float32 there
# Of yarn, what llama.cpp computes by itself or not at all.
_YARN_KEYS = ("attention_factor", "mscale", "mscale_all_dim", "no_truncate")


def llama_cpp_of(decoder: Decoder) -> LlamaCpp:
    """A decoder's architecture in llama.cpp. Raises ModelError where it has none."""
    target = decoder.architecture.llama_cpp
    if target is None:
        names = [name for name, arch in architectures().items() if has_target(name)]
        raise ModelError(
            f"llama.cpp has no architecture for model_type '{decoder.model_type}'; --gguf writes "
            f"{', '.join(names)}"
        )
    return target


def has_target(model_type: str) -> bool:
    """True where some models of a model_type can be written: of a vision-language model without a
    record of its own, those of its texts that have one."""
    arch = architectures()[model_type]
    texts = () if arch.vision is None else arch.vision.texts
    return arch.llama_cpp is not None or any(has_target(text) for text in texts)


def check_decoder(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Notes on what the file will not have of a model.

    Raises ModelError naming the first thing that llama.cpp computes otherwise.
    """
    decoder = checkpoint.decoder
    target = llama_cpp_of(decoder)
    for problem in _problems(decoder, target):
        raise ModelError(
            f"{checkpoint.path}: llama.cpp's '{target.name}' {problem}; this model cannot be "
            "written as GGUF"
        )
    if not (decoder.tied_embeddings or target.own_output or checkpoint.output_layer_was_tied):
        raise ModelError(
            f"{checkpoint.path}: llama.cpp's '{target.name}' takes the embedding as output layer, "
            "and this model has another one"
        )
    return tuple(_notes(decoder, target))


def longest_context(decoder: Decoder, target: LlamaCpp) -> int:
    """Tokens up to which llama.cpp computes what the model does: where it has no windows, a layer's
    window."""
    windows = [w for w in decoder.windows if w is not None]
    if target.full_attention_every is not None or not windows:
        return decoder.max_positions
    return min(decoder.max_positions, *windows)


def _problems(decoder: Decoder, target: LlamaCpp) -> Iterator[str]:
    arch = decoder.architecture
    if decoder.rope.kind not in target.rope_kinds:
        yield f"has no rotation of kind '{decoder.rope.kind}'"
    if decoder.rope.kind == "yarn":
        given = dict(decoder.rope.parameters)
        if keys := [key for key in _YARN_KEYS if given.get(key)]:
            yield f"has no {', '.join(keys)} of yarn"
    if arch.local_rope_theta is not None and decoder.local_rope.kind != "default":
        yield f"rotates layers with a window plainly, not as '{decoder.local_rope.kind}'"
    if decoder.output_bias and not target.output_bias:
        yield f"has no bias of {arch.attention_out}"
    if decoder.mlp_bias and not target.mlp_bias:
        yield "has no biases in the MLP"
    if not target.free_head_size and decoder.num_heads * decoder.head_size != decoder.hidden_size:
        yield (
            f"has heads of hidden_size / num_attention_heads channels, and these are of "
            f"{decoder.head_size}"
        )
    yield from _softcap("scores", decoder.attention_softcap, target.attention_softcap)
    yield from _softcap("logits", decoder.logits_softcap, target.logits_softcap)
    yield from _attention(decoder, target)
    if decoder.moe is not None:
        if not all(decoder.moe.layers):
            yield "has experts in every layer, and this model has layers without"
        if not decoder.moe.normalised:
            yield "makes the experts' shares sum to 1, and norm_topk_prob is false"


def _softcap(what: str, cap: float | None, presence: Presence) -> Iterator[str]:
    if cap is None and presence == "always":
        yield f"has a soft cap of {what}, and this model has none"
    if cap is not None and presence == "never":
        yield f"has no soft cap of {what}"


def _attention(decoder: Decoder, target: LlamaCpp) -> Iterator[str]:
    if not target.writes_multipliers:
        channels = decoder.head_size
        if decoder.num_layers == target.wide_scale_layers:
            channels = decoder.hidden_size // decoder.num_heads
        scale = channels**-0.5
        if abs(decoder.attention_scale - scale) > _NEARLY * scale:
            yield (
                f"multiplies attention scores by {scale:.5g}, and this model by "
                f"{decoder.attention_scale:.5g}"
            )
    every = target.full_attention_every
    if every is not None:
        has_window = tuple(w is not None for w in decoder.windows)
        if has_window != tuple((layer + 1) % every > 0 for layer in range(decoder.num_layers)):
            yield f"has a window in all layers but every {every}th, and this model in others"


def _notes(decoder: Decoder, target: LlamaCpp) -> Iterator[str]:
    context = longest_context(decoder, target)
    if context < decoder.max_positions:
        yield (
            f"context: {context} tokens, up to which it is the same model: llama.cpp's "
            f"'{target.name}' has no sliding window"
        )
    if decoder.architecture.vision is not None:
        yield (
            "the file has the language model alone; llama.cpp reads pictures by an mmproj file of "
            "the original model"
        )
