"""A tiny model that groups of 128 fit, and texts for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_models import save_tokenizer

WORDS = "the river runs past an old house where nobody has lived since the long winter of snow"


@pytest.fixture(scope="session")
def study_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with grouped-query attention; weights large enough for texts to differ."""
    torch = pytest.importorskip("torch", reason="needs the [host] extra")
    from transformers import LlamaConfig, LlamaForCausalLM

    path = save_tokenizer(tmp_path_factory.mktemp("study") / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 2.0 * parameter.shape[1] ** -0.5)
    model.save_pretrained(path)
    return path


def write_text(path: Path, seed: int) -> Path:
    """Some thousand tokens of words in an order of their own."""
    import random

    words = WORDS.split() * 60
    random.Random(seed).shuffle(words)
    path.write_text(" ".join(words), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four different texts, by what they are for."""
    folder = tmp_path_factory.mktemp("texts")
    names = ("held_out", "text", "own", "other")
    return {name: write_text(folder / f"{name}.txt", seed) for seed, name in enumerate(names)}
