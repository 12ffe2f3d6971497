"""Limits of runtime cuda.

For decoders it is an allow-list: the one that a program would execute is made of the fields that
`lower_cuda` reads, and of Llama's values for all others. Every difference from it is lacking, in a
field that is added to `Decoder` or `Architecture` later too; a test records what is read.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from awq_edge.errors import ModelError
from awq_edge.exporter.checks import ExportedModel, packing_problems
from awq_edge.kernels.interface import HEAD_SIZES
from awq_edge.model.archs.base import Architecture
from awq_edge.model.archs.decoder import Decoder
from awq_edge.recipe.recipes import Recipe

_VECTOR = 8  # activations that the kernels load at a time
_LLAMA = Architecture(model_type="", examples="")
# Fields of a decoder that the lowering reads, whatever they are.
PROGRAM_FIELDS = frozenset(
    "vocab_size hidden_size intermediate_size num_layers num_heads num_kv_heads head_size norm_eps "
    "rope windows attention_scale tied_embeddings qkv_bias output_bias mlp_bias".split()
)
# Fields without arithmetic.
_FACTS = frozenset("max_positions dtype bos_token_id eos_token_ids notes doubtful_keys".split())
# Fields of an architecture that the lowering reads: names, but for qk_norm.
PROGRAM_NAMES = frozenset(
    "embedding layers attention_norm qkv q_norm k_norm qk_norm attention_out mlp_norm mlp_in "
    "mlp_out final_norm lm_head".split()
)
# Fields that `resolve_decoder` reads: what they say is in the decoder's.
RESOLVED = frozenset(
    "model_type qkv_bias output_bias mlp_bias activations activation intermediate_size norm_eps "
    "norm_first window_rule full_attention_every partial_rotary rope_kinds rope_names "
    "local_rope_theta attention_softcap logits_softcap attention_scale scaled_embedding "
    "embedding_multiplier residual_multiplier attention_multiplier logits_divisor embedding_size "
    "nullable defaults required no_effect".split()
)
# Fields that say nothing where another, which is compared, is Llama's; and what others check.
_FOLLOWING = frozenset("examples position_offset project_in project_out overflows_float16".split())
_WORDS = {
    "images": "a vision tower",
    "vision": "a vision tower",
    "moe": "experts",
    "experts": "experts",
    "qkv": "fused projections",
    "mlp_in": "fused projections",
    "gated": "an MLP without a gate",
    "attention_post_norm": "norms behind attention and MLP",
    "mlp_post_norm": "norms behind attention and MLP",
    "norm_first": "norms after the residual sums",
    "attention_softcap": "soft caps",
    "logits_softcap": "soft caps",
    "embedding_scale": "scaled embeddings",
    "residual_scale": "a residual multiplier",
    "logits_divisor": "scaled logits",
    "embedding_size": "projected embeddings",
    "positions": "learned positions",
    "local_rope": "a rotary embedding of its own for layers with a window",
}


def check(recipe: Recipe, model: ExportedModel | None) -> None:
    """Raise ModelError for parts of a model that a program has no place for, or no kernel for."""
    if model is None:
        return
    decoder, problems = model.decoder, []
    extras = beyond_llama(decoder)
    if extras:
        raise ModelError(
            f"{model.path}: runtime cuda does not have yet what its model_type "
            f"'{decoder.model_type}' needs: {', '.join(extras)}; export it with "
            "--runtime onnxruntime"
        )
    if decoder.head_size not in HEAD_SIZES:
        sizes = ", ".join(map(str, HEAD_SIZES))
        problems.append(f"head size {decoder.head_size} is not one of {sizes}")
    for what, size in (
        ("hidden_size", decoder.hidden_size),
        ("intermediate_size", decoder.intermediate_size),
    ):
        if size % _VECTOR:
            problems.append(f"{what} {size} is not a multiple of {_VECTOR}")
    problems += packing_problems(model)
    if problems:
        raise ModelError(
            f"{model.path}: no CUDA kernel exists for it: {'; '.join(problems)}; export it "
            "with --runtime onnxruntime"
        )


def beyond_llama(decoder: Decoder) -> tuple[str, ...]:
    """Parts of a model, in words, that blocks like Llama's do not have: blocks of llama, mistral,
    qwen2 and qwen3, with biases, norms of heads and windows."""
    executed = _executed(decoder)
    pairs = ((decoder.architecture, executed.architecture), (decoder, executed))
    lacking = [
        _words(field.name, decoder)
        for whole, part in pairs
        for field in fields(whole)
        if field.name != "architecture" and getattr(whole, field.name) != getattr(part, field.name)
    ]
    return tuple(dict.fromkeys(lacking))


def _executed(decoder: Decoder) -> Decoder:
    """The decoder that a program would execute in the place of this one."""
    arch = decoder.architecture
    same: dict[str, Any] = {
        name: getattr(arch, name) for name in PROGRAM_NAMES | RESOLVED | _FOLLOWING
    }
    if len(arch.qkv) == 1:
        same["qkv"] = _LLAMA.qkv
    if len(arch.mlp_in) == 1 and arch.gated:
        same["mlp_in"] = _LLAMA.mlp_in
    rope = decoder.rope
    given = {name: getattr(decoder, name) for name in PROGRAM_FIELDS | _FACTS}
    given["rope"] = rope if rope.kind != "longrope" else replace(rope, kind="default")
    return Decoder(
        architecture=replace(_LLAMA, **same),
        embedding_size=decoder.hidden_size,
        local_rope=rope if any(decoder.windows) else decoder.local_rope,
        activation="silu",
        norm_first=True,
        attention_softcap=None,
        logits_softcap=None,
        embedding_scale=1.0,
        moe=None,
        **given,
    )


def _words(name: str, decoder: Decoder) -> str:
    """A field that differs, in words; a new one under its own name."""
    if name == "activation":
        return f"the activation {decoder.activation}"
    if name == "norm_kind":
        is_layer = decoder.architecture.norm_kind == "layer"
        return "LayerNorm" if is_layer else "norms with an offset"
    return decoder.rope.kind if name == "rope" else _WORDS.get(name, name.replace("_", " "))
