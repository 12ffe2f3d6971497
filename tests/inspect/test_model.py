"""Inspecting a model of every architecture: all parameters, all bytes, what a decode step reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

import awq_edge
from awq_edge.inspect.artifact import inspect_artifact
from awq_edge.model.archs import architectures
from tests.arch_configs import is_vision, model_class, tiny_config
from tests.tiny_models import save_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("model_type", list(architectures()))
def test_every_architecture(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, **tiny_config(model_type, SIZES))
    model = model_class(model_type).from_config(config)
    model.save_pretrained(tmp_path / "model")
    found = inspect_artifact(tmp_path / "model")
    ignored = "config.json: keys that transformers"  # of SIZES, which OPT has not all of
    assert found.problems == tuple(n for n in found.notes if not n.startswith(ignored)) == ()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert found.parameters == sum(sizes.values())
    stored = sum(array.nbytes for array in load_file(tmp_path / "model/model.safetensors").values())
    assert found.weight_bytes == stored == sum(part.bytes for part in found.parts)
    assert found.bits_per_weight == pytest.approx(8 * stored / sum(sizes.values()))
    # What a token does not read: all other rows of the tables, the experts that it is not sent to.
    tables = {name: n for name, n in sizes.items() if "embed_" in name}
    rows = sum(SIZES["hidden_size"] for _ in tables)
    unread = sum(tables.values()) - rows
    if config.tie_word_embeddings:
        unread -= next(n for name, n in tables.items() if "embed_tokens" in name)
    experts = sum(n for name, n in sizes.items() if ".experts." in name)
    if experts:
        chosen = config.num_experts_per_tok
        unread += experts * (4 - chosen) // 4
    if is_vision(model_type):  # a token of text passes neither tower nor projector
        decoder = ("model.language_model.", "lm_head.")
        unread += sum(n for name, n in sizes.items() if not name.startswith(decoder))
    item = stored // sum(sizes.values())
    assert found.weight_bytes_per_token == stored - item * unread
    assert found.architecture is not None
    assert found.architecture.tied_embeddings == config.tie_word_embeddings


def test_experts_and_their_router_in_a_checkpoint(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("mixtral", **tiny_config("mixtral", SIZES))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    recipe = awq_edge.load_recipe(method="rtn", group_size=32)
    path = awq_edge.quantize(tmp_path / "model", tmp_path / "out", recipe).path
    found = inspect_artifact(path)
    stored = load_file(path / "model.safetensors")
    assert len(found.unquantized) == 2
    for name, reason in found.unquantized.items():
        assert name.endswith("gate") and f"{name}.weight" in stored
        assert reason == "never quantized: decides which experts a token is sent to"
    experts = sum(array.nbytes for name, array in stored.items() if ".experts." in name)
    (blocks,) = (part for part in found.parts if part.name == "blocks")
    assert blocks.bytes - blocks.bytes_per_token == pytest.approx(experts / 4, abs=8)
    assert found.quantized_bits_per_weight == pytest.approx(4 + (16 + 4) / 32)
    assert json.loads(found.model_dump_json())["kind"] == "autoawq checkpoint"
