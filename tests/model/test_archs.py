"""Architectures: found by listing the folder, sizes equal to transformers' own modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import awq_edge.model.archs
from awq_edge.errors import ModelError
from awq_edge.model.archs import Config, Decoder, ScaleGroup, architectures, decoder_from_config
from awq_edge.model.files import ModelFiles
from tests.arch_configs import in_memory, is_vision, model_class, tiny_config

FOLDER = Path(awq_edge.model.archs.__file__).parent
NO_ARCHITECTURES = {
    *("__init__", "base", "config", "decoder", "known_keys", "llama_cpp", "rotary", "vision"),
}
MODEL_TYPES = sorted({path.stem for path in FOLDER.glob("*.py")} - NO_ARCHITECTURES)
SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 72,
    "max_position_embeddings": 256,
}


def test_every_file_of_the_folder_is_registered() -> None:
    assert sorted(architectures()) == MODEL_TYPES


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_weight_names_and_shapes_equal_transformers(
    model_type: str, tied: bool, tmp_path: Path
) -> None:
    """As transformers writes them: experts have other names in memory."""
    pytest.importorskip("torch", reason="host extra")
    from transformers import AutoConfig

    flags = {"attention_bias": True, "mlp_bias": True} if model_type == "llama" else {}
    sizes = tiny_config(model_type, SIZES, **flags, tie_word_embeddings=tied)
    config = AutoConfig.for_model(model_type, **sizes)
    model = model_class(model_type).from_config(config)
    model.save_pretrained(tmp_path)
    files = ModelFiles(tmp_path)
    decoder = decoder_from_config(files.config)
    vision = decoder.architecture.vision
    expected = {
        name: entry.shape
        for name, entry in files.entries.items()
        if vision is None or not vision.keeps(name)
    }
    assert decoder.weight_shapes() == expected
    # What is kept beside the decoder is all of what is left, and something.
    assert (len(files.entries) > len(expected)) == is_vision(model_type)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_scale_groups_and_inputs_cover_every_linear_once(model_type: str) -> None:
    decoder = tiny(model_type)
    for layer in range(decoder.num_layers):
        groups, linears = decoder.scale_groups(layer), decoder.linears(layer)
        names = sorted(linear.name for linear in linears)
        assert sorted(name for group in groups for name in group.linears) == names
        inputs = decoder.inputs(layer)
        assert sorted(name for readers in inputs.values() for name in readers) == names
        shapes = decoder.block_shapes(layer)
        for group in groups:
            assert f"{group.previous}.weight" in shapes or group.kind == "none"
            assert all(f"{reader}.weight" in shapes for reader in group.readers)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    """What config.json lacks is what transformers' class of the configuration takes."""
    transformers = pytest.importorskip("transformers", reason="host extra")
    # Which a configuration without it forgets.
    window = {"use_sliding_window": True}
    config = transformers.AutoConfig.for_model(model_type, **window).to_dict()
    arch = architectures()[model_type]
    text_type = (config.get("text_config") or {}).get("model_type", model_type)
    config = transformers.AutoConfig.for_model(text_type, **window).to_dict()
    check_defaults(arch.defaults, config)
    if arch.vision is not None:
        for text, defaults in arch.vision.texts.items():
            config = transformers.AutoConfig.for_model(text, **window).to_dict()
            check_defaults(defaults, config)


def check_defaults(defaults: Config, config: dict[str, Any]) -> None:
    ropes = config.get("rope_parameters") or {}
    moved = {
        "rope_theta": ropes.get("full_attention", ropes).get("rope_theta"),
        "rope_local_base_freq": ropes.get("sliding_attention", {}).get("rope_theta"),
        "sliding_window_pattern": config.get("_sliding_window_pattern"),
        "num_experts": config.get("num_local_experts"),
    }
    for key, value in defaults.items():
        assert config.get(key, moved.get(key)) == value, key


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_the_config_decides_equals_transformers(model_type: str) -> None:
    """Flags that the graph reads, against the attributes of transformers' modules."""
    torch = pytest.importorskip("torch", reason="host extra")
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, **tiny_config(model_type, SIZES))
    with torch.device("meta"):
        model = model_class(model_type).from_config(config)
    decoder = decoder_from_config(config.to_dict())
    embedding = model.get_input_embeddings()
    multiplier = getattr(config, "embedding_multiplier", 1.0)
    assert decoder.embedding_scale == getattr(embedding, "scalar_embed_scale", multiplier)
    assert decoder.logits_divisor == getattr(config, "logits_scaling", 1.0)
    assert decoder.residual_scale == getattr(config, "residual_multiplier", 1.0)
    assert decoder.logits_softcap == getattr(config, "final_logit_softcapping", None)
    layers = model.get_submodule(in_memory(decoder, decoder.architecture.layers))
    for layer, window in zip(layers, decoder.windows, strict=True):
        attention = layer.self_attn
        assert decoder.attention_scale == attention.scaling
        if decoder.architecture.attention_softcap is not None:
            assert decoder.attention_softcap == attention.attn_logit_softcapping
        if hasattr(attention, "sliding_window"):
            assert window == attention.sliding_window


def tiny(model_type: str, **changes: Any) -> Decoder:
    config = tiny_config(model_type, SIZES, **changes)
    return decoder_from_config({"model_type": model_type, **config})


def groups_of(decoder: Decoder, layer: int = 0) -> dict[str, ScaleGroup]:
    return {group.name: group for group in decoder.scale_groups(layer)}


def test_fused_linears_are_divided_in_the_rows_that_are_meant() -> None:
    """6 query heads, 2 key and 2 value heads of 32; 160 gate rows and as many of up."""
    groups = groups_of(tiny("phi3"))
    assert groups["attention_out"].previous == "self_attn.qkv_proj"
    assert groups["attention_out"].rows == (256, 320)
    assert groups["mlp_out"].previous == "mlp.gate_up_proj"
    assert groups["mlp_out"].rows == (160, 320)


def test_the_router_follows_the_scale_of_the_experts() -> None:
    decoder = tiny("mixtral")
    groups, inputs = groups_of(decoder), decoder.inputs(0)
    assert groups["mlp_in"].readers == ("block_sparse_moe.gate",)
    assert len(groups["mlp_in"].linears) == 8
    assert inputs["mlp_in.3"] == (
        "block_sparse_moe.experts.3.w1",
        "block_sparse_moe.experts.3.w3",
    )
    assert groups["mlp_out.3"].previous == "block_sparse_moe.experts.3.w3"
    shares = {name: decoder.token_share(0, name) for name in inputs}
    assert shares == {n: 0.75 if n.startswith("mlp") else 1.0 for n in inputs}  # 3 of 4 experts
    assert decoder.unquantized_modules()[0] == "model.layers.0.block_sparse_moe.gate"


def test_experts_stand_where_the_config_says() -> None:
    """Names of transformers 4 and 5 for their number."""

    def layers(**changes: Any) -> tuple[bool, ...]:
        moe = decoder_from_config({"model_type": "qwen3_moe", **SIZES, **changes}).moe
        assert moe is not None and moe.num_experts == 16
        return moe.layers

    assert layers(num_experts=16) == (True, True, True)
    assert layers(num_local_experts=16, decoder_sparse_step=2) == (False, True, False)
    assert layers(num_experts=16, mlp_only_layers=[1]) == (True, False, True)
    dense = groups_of(tiny("qwen3_moe"), layer=0)
    assert dense["mlp_out"].previous == "mlp.up_proj" and not dense["mlp_in"].readers


def test_groups_that_nothing_can_undo_are_not_scaled() -> None:
    """OPT-350m's norms feed the residual too; a gelu without a gate lets no scale pass."""
    groups = groups_of(tiny("opt", do_layer_norm_before=False))
    assert [group.kind for group in groups.values()] == ["none", "value_rows", "none", "up_rows"]
    groups = groups_of(tiny("opt", activation_function="gelu"))
    assert [group.kind for group in groups.values()] == ["norm", "value_rows", "norm", "none"]


def test_windows_follow_the_model() -> None:
    def windows(model_type: str, **extra: Any) -> tuple[int | None, ...]:
        return decoder_from_config({"model_type": model_type, **SIZES, **extra}).windows

    assert windows("llama", sliding_window=8) == (None,) * 3
    assert windows("mistral", sliding_window=8) == (8,) * 3
    assert windows("mistral", sliding_window=None) == (None,) * 3
    assert windows("qwen2", sliding_window=8, use_sliding_window=False) == (None,) * 3
    switched_on = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}
    assert windows("qwen2", **switched_on) == (None, None, 8)
    assert windows("gemma2", sliding_window=8) == (8, None, 8)
    assert windows("gemma3_text", sliding_window=8) == (8, 8, 8)
    assert windows("gemma3_text", sliding_window=8, sliding_window_pattern=3) == (8, 8, None)
    experts = {"num_experts": 8}
    assert windows("qwen3_moe", sliding_window=8, **experts) == (None,) * 3
    assert windows("qwen3_moe", sliding_window=8, use_sliding_window=True, **experts) == (8,) * 3
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    on = {"sliding_window": 8, "use_sliding_window": True}
    assert windows("qwen3", **on, layer_types=kinds) == (8, None, 8)
    with pytest.raises(ModelError, match=r"'sliding_attention' need .* use_sliding_window is off"):
        windows("qwen3", sliding_window=8, layer_types=kinds)
    with pytest.raises(ModelError, match="'sliding_attention' need a sliding_window, and it is nu"):
        windows("gemma2", sliding_window=None)
    with pytest.raises(ModelError, match="layer_types has 1 entries for 3 layers"):
        windows("qwen3", sliding_window=8, layer_types=["full_attention"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt_neox"}, "model_type 'gpt_neox' is not supported; supported: gemma2,"),
        ({"hidden_size": None}, "'hidden_size' must be a positive integer, found null"),
        ({"num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple of"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported for llama"),
        ({"vocab_size": True}, "'vocab_size' must be a positive integer, found true"),
        (
            {"model_type": "gemma3_text", "use_bidirectional_attention": True},
            "'use_bidirectional_attention' is true, which is not supported for gemma3_text",
        ),
        (
            {"model_type": "opt", "ffn_dim": 96, "layer_norm_elementwise_affine": False},
            "'layer_norm_elementwise_affine' is false, which is not supported for opt",
        ),
        (
            {"model_type": "mixtral", "num_experts": None, "num_local_experts": 4},
            "'num_experts' must be a positive integer, found null",
        ),
        (
            {"model_type": "mixtral", "num_local_experts": 1},
            "num_experts_per_tok 2 is more than the 1 experts of num_local_experts",
        ),
        (
            {"model_type": "gemma2", "query_pre_attn_scalar": "256"},
            "'query_pre_attn_scalar' must be a positive integer, found '256'",
        ),
        (
            {"model_type": "phi3", "rope_scaling": {"type": "longrope", "short_factor": [1.0]}},
            "rope type 'longrope' needs 16 numbers in 'short_factor', found 1",
        ),
    ],
)
def test_what_is_not_supported_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        decoder_from_config({"model_type": "llama", **SIZES, **change})


@pytest.mark.parametrize("first", ["image_token_id", "image_token_index"])
def test_the_other_name_of_a_key_goes_first(first: str) -> None:
    """As transformers' attribute_map has it, in whatever order they stand."""
    pytest.importorskip("transformers", reason="host extra")
    from transformers import AutoConfig

    last = {"image_token_id": "image_token_index"}.get(first, "image_token_id")
    sizes = tiny_config("llava", SIZES)
    sizes.pop("image_token_index")
    sizes |= {first: 11 if first == "image_token_id" else 12}
    sizes |= {last: 12 if first == "image_token_id" else 11}
    assert AutoConfig.for_model("llava", **sizes).image_token_index == 11
    images = decoder_from_config({"model_type": "llava", **sizes}).images
    assert images is not None and images.image_id == 11
