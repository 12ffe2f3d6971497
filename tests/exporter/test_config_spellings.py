"""What config.json says and what is stored: every spelling, in each order, against transformers.

A config.json is edited as text, as people and tools do; transformers loads the same folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file

from awq_edge.errors import ModelError
from awq_edge.runtime.backends import open_session
from awq_edge.runtime.session import SessionOptions
from tests.arch_configs import model_class

from .conftest import Export
from .models import TINY, random_ids, save_random_model
from .test_parity import TOLERANCE, relative_error

Config = dict[str, Any]
Tensors = dict[str, torch.Tensor]
TOKENS = 48  # more than the windows below


def edit(path: Path, *changes: Config, remove: tuple[str, ...] = ()) -> None:
    """Set keys of config.json, the last ones last in the file."""
    file = path / "config.json"
    config = json.loads(file.read_text())
    for key in remove:
        config.pop(key, None)
    for change in changes:
        for key, value in change.items():
            config.pop(key, None)
            config[key] = value
    file.write_text(json.dumps(config))


@torch.no_grad()
def reference(path: Path, ids: list[int]) -> np.ndarray:
    """Logits of transformers on the folder as it is. Raises what transformers raises."""
    kind = json.loads((path / "config.json").read_text())["model_type"]
    model = model_class(kind).from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return model.eval()(torch.tensor(ids)[None]).logits[0].numpy()


def ours(path: Path, ids: list[int], export: Export) -> np.ndarray:
    bundle = export(path)
    with open_session(bundle, SessionOptions(threads=1)) as session:  # type: ignore[attr-defined]
        pieces = [
            session.logits(ids[start : start + 32], range(len(ids[start : start + 32])))
            for start in range(0, len(ids), 32)
        ]
    return np.concatenate(pieces)


def agree(path: Path, export: Export) -> np.ndarray:
    """Our logits, which are transformers'."""
    ids = random_ids(TOKENS, TINY["vocab_size"])
    found = ours(path, ids, export)
    assert relative_error(found, reference(path, ids)) < TOLERANCE
    return found


# model_type, changes in their order, keys that are missing.
READ: dict[str, tuple[str, list[Config], tuple[str, ...]]] = {
    "experts, other name first": ("mixtral", [{"num_experts": 4}, {"num_local_experts": 7}], ()),
    "experts, other name last": ("mixtral", [{"num_local_experts": 7}, {"num_experts": 4}], ()),
    "experts, other name alone": ("mixtral", [{"num_experts": 4}], ("num_local_experts",)),
    "qwen experts, other first": ("qwen3_moe", [{"num_local_experts": 4}, {"num_experts": 7}], ()),
    "qwen experts, other last": ("qwen3_moe", [{"num_experts": 7}, {"num_local_experts": 4}], ()),
    "qwen experts, other alone": ("qwen3_moe", [{"num_local_experts": 4}], ("num_experts",)),
    "dtypes": ("llama", [{"torch_dtype": "float16"}, {"dtype": "float32"}], ()),
    "dtypes, turned": ("llama", [{"dtype": "float32"}, {"torch_dtype": "float16"}], ()),
    "dtype null": ("llama", [{"dtype": None}, {"torch_dtype": "float32"}], ()),
    "window missing": ("mistral", [], ("sliding_window",)),
    "window null": ("mistral", [{"sliding_window": None}], ()),
    "window": ("mistral", [{"sliding_window": 9}], ()),
    "window of no use": ("llama", [{"sliding_window": 9, "use_sliding_window": True}], ()),
    "window off": ("qwen2", [{"sliding_window": 9, "use_sliding_window": False}], ("layer_types",)),
    "window on": (
        "qwen2",
        [{"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1}],
        ("layer_types",),
    ),
    "window on, from the layer of the default": (
        "qwen2",
        [{"sliding_window": 9, "use_sliding_window": True}],
        ("layer_types", "max_window_layers"),
    ),
    "window on, of experts": ("qwen3_moe", [{"sliding_window": 9, "use_sliding_window": True}], ()),
    "window on and null": (
        "qwen3", [{"sliding_window": None, "use_sliding_window": True}], ("layer_types",)
    ),
    "layer types": (
        "qwen3",
        [{"sliding_window": 9, "use_sliding_window": True,
          "layer_types": ["full_attention", "sliding_attention"]}],
        (),
    ),
    "layer types of no use": ("llama", [{"layer_types": ["full_attention"] * 2}], ()),
    "pattern": ("gemma3_text", [{"sliding_window_pattern": 2, "sliding_window": 9}],
                ("layer_types",)),
    "pattern missing": ("gemma3_text", [{"sliding_window": 9}], ("layer_types",)),
    "pattern and types": (
        "gemma3_text",
        [{"sliding_window_pattern": 2, "sliding_window": 9,
          "layer_types": ["full_attention", "sliding_attention"]}],
        (),
    ),
    "soft caps null": (
        "gemma2", [{"attn_logit_softcapping": None, "final_logit_softcapping": None}], ()
    ),
    "head size null": ("llama", [{"head_dim": None, "num_attention_heads": 2,
                                  "num_key_value_heads": 1}], ()),
    "head size missing": ("mistral", [{"num_attention_heads": 2, "num_key_value_heads": 1}],
                          ("head_dim",)),
    "heads of keys null": ("llama", [{"num_attention_heads": 2, "num_key_value_heads": None,
                                      "head_dim": 32}], ()),
    "shares that sum to 1": ("qwen3_moe", [{"norm_topk_prob": True}], ()),
    "mlp_only_layers null": ("qwen3_moe", [{"mlp_only_layers": None}], ()),
    "biases": ("qwen2", [{"attention_bias": False}], ()),  # which its class does not read
}  # fmt: skip
# Where sizes change, the weights are those of this configuration.
BUILT: dict[str, Config] = {
    "head size null": {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1},
    "head size missing": {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1},
    "heads of keys null": {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 2},
    "window on, of experts": {"decoder_sparse_step": 1},
    "shares that sum to 1": {"decoder_sparse_step": 1},
    "mlp_only_layers null": {"decoder_sparse_step": 1},
}


@pytest.mark.parametrize("name", list(READ))
def test_spellings(name: str, tmp_path: Path, export: Export) -> None:
    model_type, changes, missing = READ[name]
    path = save_random_model(tmp_path / "model", model_type, **BUILT.get(name, {}))
    edit(path, *changes, remove=missing)
    agree(path, export)


# What transformers refuses, or cannot run; so do we, with a line.
REFUSED: dict[str, tuple[str, Config]] = {
    "heads of keys null": ("mistral", {"num_key_value_heads": None}),
    "heads of keys null, experts": ("qwen3_moe", {"num_key_value_heads": None}),
    "head size null": ("gemma2", {"head_dim": None}),
    "head size null, qwen": ("qwen3", {"head_dim": None}),
    "sizes in quotes": ("llama", {"hidden_size": "64"}),
    "sizes as fractions": ("llama", {"intermediate_size": 160.0}),
    "layers null": ("llama", {"num_hidden_layers": None}),
    "vocabulary null": ("llama", {"vocab_size": None}),
    "experts null": ("mixtral", {"num_experts": None}),
    "experts null, own name": ("qwen3_moe", {"num_experts": None}),
    "activation null": ("llama", {"hidden_act": None}),
    "eps null": ("llama", {"rms_norm_eps": None}),
    "eps in quotes": ("llama", {"rms_norm_eps": "1e-6"}),
    "flag in quotes": ("llama", {"attention_bias": "false"}),
    "flag as a number": ("llama", {"tie_word_embeddings": 0}),
    "flag null": ("llama", {"tie_word_embeddings": None}),
    "scale a fraction": ("gemma2", {"query_pre_attn_scalar": 24.5}),
    "window null where layers need it": ("gemma2", {"sliding_window": None}),
    "window off where layers need it": (
        "qwen3", {"sliding_window": 9, "layer_types": ["sliding_attention"] * 2}
    ),
    "theta null": ("llama", {"rope_theta": None}),
    "theta null, windows": ("gemma3_text", {"rope_local_base_freq": None}),
    "original positions null": ("phi3", {"original_max_position_embeddings": None}),
    "part of a head null": ("phi3", {"partial_rotary_factor": None}),
    "bos in quotes": ("llama", {"bos_token_id": "1"}),
    "bos a list": ("llama", {"bos_token_id": [1]}),
}  # fmt: skip


# transformers raises many kinds: the first is its strict configurations'.
REFUSALS = (StrictDataclassError, ValueError, TypeError, AttributeError)


@pytest.mark.parametrize("name", list(REFUSED))
def test_refusals(name: str, tmp_path: Path, export: Export) -> None:
    model_type, change = REFUSED[name]
    path = save_random_model(tmp_path / "model", model_type)
    edit(path, change, remove=("rope_parameters",) if "theta" in name or "part" in name else ())
    ids = random_ids(TOKENS, TINY["vocab_size"])
    with pytest.raises(REFUSALS):
        reference(path, ids)
    with pytest.raises(ModelError, match=next(iter(change))):
        export(path)
    assert not (tmp_path / "bundle").exists()


def stored(path: Path) -> Tensors:
    return load_file(path / "model.safetensors")


def store(path: Path, tensors: Tensors) -> None:
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(params=[("llama", "model.embed_tokens.weight", "lm_head.weight"),
                        ("gemma3_text", "model.embed_tokens.weight", "lm_head.weight"),
                        ("opt", "model.decoder.embed_tokens.weight", "lm_head.weight")],
                ids=["llama", "gemma3_text", "opt"])  # fmt: skip
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, str]:
    """A model whose embedding is the output layer, and the names of the two."""
    model_type, embedding, lm_head = request.param
    path = save_random_model(tmp_path / "model", model_type, tie_word_embeddings=True)
    assert lm_head not in stored(path)
    return path, embedding, lm_head


def test_a_copy_that_is_stored_is_shared(shared: tuple[Path, str, str], export: Export) -> None:
    path, embedding, lm_head = shared
    before = agree(path, export)
    tensors = stored(path)
    store(path, tensors | {lm_head: tensors[embedding].clone()})
    np.testing.assert_array_equal(agree(path, export), before)


def test_another_weight_that_is_stored_is_not_shared(
    shared: tuple[Path, str, str], export: Export
) -> None:
    """By the words of config.json it would be; transformers takes what is stored."""
    path, embedding, lm_head = shared
    before = agree(path, export)
    tensors = stored(path)
    store(path, tensors | {lm_head: torch.flip(tensors[embedding], (0,))})
    found = agree(path, export)
    assert relative_error(found, before) > 100 * TOLERANCE
    edit(path, {"tie_word_embeddings": False})
    np.testing.assert_array_equal(agree(path, export), found)


def test_the_one_that_is_stored_is_both(shared: tuple[Path, str, str], export: Export) -> None:
    path, embedding, lm_head = shared
    before = agree(path, export)
    tensors = stored(path)
    tensors[lm_head] = tensors.pop(embedding)
    store(path, tensors)
    np.testing.assert_array_equal(agree(path, export), before)


def test_an_output_layer_that_is_neither_stored_nor_shared_is_missing(
    shared: tuple[Path, str, str], export: Export
) -> None:
    path, _, lm_head = shared
    edit(path, {"tie_word_embeddings": False})
    with pytest.raises(ModelError, match=f"weight '{lm_head}' of shape .* is missing"):
        export(path)


def test_a_copy_of_another_dtype_is_compared_by_value(
    shared: tuple[Path, str, str], export: Export
) -> None:
    path, embedding, lm_head = shared
    tensors = stored(path)
    tensors[embedding] = tensors[embedding].to(torch.bfloat16)
    store(path, tensors | {lm_head: tensors[embedding].float()})
    agree(path, export)
    assert json.loads((path.parent / "bundle/config.json").read_text())["tie_word_embeddings"]
