"""Blocks run one by one give what transformers' whole model gives, for every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.files import ModelFiles
from awq_edge.quantizer.blocks.runner import BlockRunner, relative_change
from tests.arch_configs import in_memory, model_class

from .conftest import build_model, load_block, save_model

# float32, the same operations; experts are added up in another order.
EQUAL = 1e-6


def block_outputs(model: Any, layers: str, ids: torch.Tensor) -> list[torch.Tensor]:
    """Input of the first block, then the output of each."""
    seen: list[torch.Tensor] = []
    handles = []
    for index, layer in enumerate(model.get_submodule(layers)):
        if index == 0:
            handles.append(
                layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
            )
        handles.append(
            layer.register_forward_hook(
                lambda module, inputs, output: seen.append(
                    output[0] if isinstance(output, tuple) else output
                )
            )
        )
    with torch.no_grad():
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def check_blocks(model: Any, path: Path, length: int = 40) -> None:
    checkpoint = Checkpoint.open(path)
    decoder = checkpoint.decoder
    ids = torch.randint(0, 128, (3, length), generator=torch.Generator().manual_seed(0))
    expected = block_outputs(model, in_memory(decoder, decoder.architecture.layers), ids)
    assert len(expected) == decoder.num_layers + 1
    runner = BlockRunner(checkpoint, torch.device("cpu"))
    hidden = runner.embed(ids, batch=2)
    assert relative_change(expected[0], hidden) < EQUAL
    for layer in range(decoder.num_layers):
        with runner.block(layer, load_block(checkpoint, layer)) as block:
            parts = enumerate(torch.split(hidden, 2))
            hidden = torch.cat([block.run(part, batch) for batch, part in parts])
        assert relative_change(expected[layer + 1], hidden) < EQUAL, layer


def test_blocks_equal_the_whole_model(tiny_model: Path) -> None:
    # Without an attention implementation asked for: the one that transformers takes for right.
    kind = model_class(Checkpoint.open(tiny_model).decoder.model_type)
    model = kind.from_pretrained(tiny_model, dtype=torch.float32).eval()
    check_blocks(model, tiny_model)


def test_a_soft_cap_is_seen(tmp_path: Path) -> None:
    """The comparison above relies on caps that matter: scores beyond gemma2's 2.0."""
    capped = save_model(build_model("gemma2"), tmp_path / "capped")
    free = build_model("gemma2", attn_logit_softcapping=1000.0)
    ids = torch.arange(40)[None]
    checkpoint = Checkpoint.open(capped)
    runner = BlockRunner(checkpoint, torch.device("cpu"))
    hidden = runner.embed(ids, batch=1)
    with runner.block(0, load_block(checkpoint, 0)) as block:
        found = block.run(hidden, 0)
    assert relative_change(block_outputs(free, "model.layers", ids)[1], found) > 100 * EQUAL


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0 + 0.1 * i for i in range(4)],
    "long_factor": [1.0 + i for i in range(4)],
}


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        # OPT-350m: norms after the sums, an embedding of its own size.
        ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
        ("opt", {"enable_bias": False, "activation_function": "gelu"}),
        # Sequences of 40 take the short factors, then the long ones.
        ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
        ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16}),
        ("phi3", {"sliding_window": 8}),
        ("mixtral", {"sliding_window": 8, "num_experts_per_tok": 1}),
        ("qwen3_moe", {"norm_topk_prob": True, "mlp_only_layers": [1], "decoder_sparse_step": 1}),
        ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ],
)
def test_variants_equal_the_whole_model(
    model_type: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    if model_type == "phi3":
        changes = {"head_dim": 16, **changes}
    model = build_model(model_type, **changes)
    check_blocks(model, save_model(model, tmp_path / "model"))


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_fused_experts_on_disk_are_the_same_model(model_type: str, tmp_path: Path) -> None:
    """What transformers 5 writes where it is told to keep its own form."""
    model = build_model(model_type)
    save_model(model, tmp_path / "single")
    save_model(model, tmp_path / "fused", save_original_format=False)
    single, fused = (Checkpoint.open(tmp_path / name) for name in ("single", "fused"))
    assert any(len(e.shape) == 3 for e in ModelFiles(tmp_path / "fused").entries.values())
    for name in single.decoder.weight_shapes():
        assert (single.dense(name) == fused.dense(name)).all(), name


def test_tokens_that_are_left_out_of_a_comparison() -> None:
    before = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    rerouted = before.clone()
    rerouted[[3, 40]] += 1
    assert relative_change(before, rerouted) > 0.1
    assert relative_change(before, rerouted, ignored=2) == 0
    # A fold that is wrong changes every token.
    assert relative_change(before, before * 1.01, ignored=4) > 5e-3
