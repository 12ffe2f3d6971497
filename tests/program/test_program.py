"""Programs: what they say of a model, and the multipliers that are folded."""

from __future__ import annotations

from typing import Any

import pytest

from awq_edge.fit.models import find_model
from awq_edge.model.archs import decoder_from_config
from awq_edge.model.w4a16 import NumberFormat
from awq_edge.program.build import build_program
from awq_edge.program.formats import Formats, planned_formats
from awq_edge.program.program import Experts, Mlp, Program, Quantized
from awq_edge.recipe.recipes import load_recipe

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
GRANITE = LLAMA | {
    "model_type": "granite",
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.03,
    "logits_scaling": 8.0,
    "tie_word_embeddings": True,
}


def program_of(config: dict[str, Any], formats: Formats | None = None) -> Program:
    decoder = decoder_from_config(config)
    return build_program(decoder, formats or planned_formats(decoder, None, 16))


def test_a_block_is_two_sums() -> None:
    program = program_of(LLAMA)
    assert [block.name for block in program.blocks] == [f"model.layers.{i}" for i in range(3)]
    first, second = program.blocks[1].sublayers
    assert first.norm is not None
    assert first.norm.weight.name == "model.layers.1.input_layernorm.weight"
    attention = program.blocks[1].attention
    assert attention.name == "model.layers.1.self_attn"
    assert attention.qkv.sizes == (128, 64, 64) and not attention.qkv.is_fused
    assert isinstance(second.mixer, Mlp) and second.mixer.is_gated
    assert not program.shares_table
    assert (program.vocab_size, program.hidden_size) == (96, 64)


def test_granite_s_multipliers_are_folded() -> None:
    """h / r has the norm of h with eps / r²; what the logits are divided by is in the last norm."""
    program = program_of(GRANITE)
    assert program.embedding.scale == 24.0 and program.shares_table
    sums = [each for block in program.blocks for each in block.sublayers]
    assert {each.residual_scale for each in sums} == {1.0}
    assert {each.norm.eps for each in sums if each.norm} == {4e-5}
    assert program.output.norm is not None and program.output.scale == 1.0
    assert (program.output.norm.eps, program.output.norm.factor) == (4e-5, 0.125)
    assert program.blocks[0].attention.scale == 0.03


def test_norms_behind_the_sums_keep_multipliers() -> None:
    """There the residual itself is normed: nothing is there to fold into."""
    config = find_model("OPT-350M").config
    program = program_of(dict(config))
    assert program.output.norm is None and program.output.projection is not None
    sublayer = program.blocks[0].sublayers[0]
    assert sublayer.norm is None and sublayer.end_norm is not None
    assert sublayer.end_norm.kind == "layer" and sublayer.end_norm.bias is not None


@pytest.mark.parametrize(
    ("bits", "expected"),
    [((4, 4, 4), ((0, 1, 2),)), ((4, 8, 4), ((0, 2), (1,))), ((3, 4, 8), ((0,), (1,), (2,)))],
)
def test_linears_of_one_format_are_merged(
    bits: tuple[int, ...], expected: tuple[tuple[int, ...], ...]
) -> None:
    widths = dict(zip(("q_proj", "k_proj", "v_proj"), bits, strict=True))

    def of(name: str, rows: int, columns: int) -> Quantized:
        width = widths.get(name.rpartition(".")[2], 4)
        return Quantized(NumberFormat(width, 32, "symmetric"), has_zeros=False)

    group = program_of(LLAMA, Formats(None, of, None)).blocks[0].attention.qkv
    assert group.merged() == expected


def test_experts_are_read_by_their_share_of_tokens() -> None:
    config = find_model("Mixtral-8x7B").config
    decoder = decoder_from_config(config)
    formats = planned_formats(decoder, load_recipe("cpu").quantization, 8)
    experts = build_program(decoder, formats, [0]).blocks[0].sublayers[1].mixer
    assert isinstance(experts, Experts) and experts.router.stored is None
    assert len(experts.experts) == 8
    assert experts.experts[3].out.read_share == 2 / 8
    assert experts.experts[3].inputs.linears[0].stored is not None


def test_a_window_may_have_a_rotation_of_its_own() -> None:
    program = program_of(dict(find_model("Gemma-3-1B").config))
    assert {name for name, _ in program.rotations} == {"rope", "rope.local"}
    seen = {(block.attention.window, block.attention.rotation) for block in program.blocks}
    assert seen == {(None, "rope"), (512, "rope.local")}
    norm = program.blocks[0].sublayers[0].norm
    assert norm is not None and norm.offset == 1.0
