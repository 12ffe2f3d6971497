"""llama.cpp itself on the files: logits of every architecture, tokens of every tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the [gguf] extra")
pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")

from awq_edge.evaluate.perplexity import negative_log_likelihoods
from awq_edge.exporter.gguf.pre_tokenizers import names
from awq_edge.runtime.tokenizer import Tokenizer
from tests.exporter.models import Reference, random_ids, save_quantized

from .conftest import VOCAB, LlamaCpp, SaveModel, WriteGguf
from .test_tensors import MODEL_TYPES
from .tokenizers_of_kinds import SIZE, TEXTS, save_byte_level, save_sentencepiece

# Of float32, relative to the largest logit; Gemma's gelu is a table of float16 there.
TOLERANCE, GELU_TOLERANCE = 2e-5, 4e-3
# Of quantized weights, root mean square: llama.cpp rounds what they multiply to 8 bits.
Q8_TOLERANCE = 0.03
TOKENS, FIRST = 90, 10  # first: ids of images and their frames are below
# An added token within a text, and a text that begins with a space.
UNUSUAL = ["a<tool>b", "  two  spaces"]
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    'One day, she saw a big dog. The dog was sad because he had no friends. Lily said, "Do you '
    'want to play with me?" The dog was happy. They played with a ball all day long. When it was '
    'time to go home, Lily gave the dog a hug. "See you tomorrow!" she said.\n'
)
LONGROPE: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 24,
        "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.2, 2.3, 2.5],
        "long_factor": [1.0, 1.5, 2.5, 3.0, 4.0, 6.0, 8.0, 9.0],
    },
    "original_max_position_embeddings": 24,
}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "biases, tied": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama3": ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, **LLAMA3}}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    "yarn": (
        "qwen3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 3.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "longrope": ("phi3", LONGROPE),
    "Qwen2 in LLaVA": (
        "llava",
        {"text_model_type": "qwen2", "num_attention_heads": 2, "num_key_value_heads": 1},
    ),
}
for _, _config in VARIANTS.values():
    if "rope_parameters" in _config:
        _config["rope_parameters"].setdefault("rope_theta", 500.0)


def ids() -> list[int]:
    return [FIRST + number for number in random_ids(TOKENS, VOCAB - FIRST)]


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_logits(model_type: str, save_model: SaveModel, write: WriteGguf) -> None:
    path = save_model(model_type)
    found = LlamaCpp(write(path).path, TOKENS).logits(ids())
    limit = GELU_TOLERANCE if "gemma" in model_type else TOLERANCE
    assert error(found, Reference(path).logits(ids())) < limit


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, save_model: SaveModel, write: WriteGguf) -> None:
    model_type, config = VARIANTS[name]
    path = save_model(model_type, **config)
    found = LlamaCpp(write(path).path, TOKENS).logits(ids())
    assert error(found, Reference(path).logits(ids())) < TOLERANCE


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "phi3"])
def test_quantized(
    scheme: Any, model_type: str, save_model: SaveModel, write: WriteGguf, tmp_path: Path
) -> None:
    source = save_model(model_type)
    path = save_quantized(source, tmp_path / "quantized", 32, scheme, layout="compressed-tensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, path / name)
    found = LlamaCpp(write(path).path, TOKENS).logits(ids())
    expected = Reference(path).logits(ids())
    assert np.linalg.norm(found - expected) < Q8_TOLERANCE * np.linalg.norm(expected)


@pytest.mark.parametrize("name", names())
def test_tokens_of_a_byte_level_tokenizer(
    name: str, save_model: SaveModel, write: WriteGguf
) -> None:
    path = save_model("llama", vocab_size=SIZE + 8)
    _check_tokens(save_byte_level(path, name), write, UNUSUAL)


@pytest.mark.parametrize("metaspace", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
def test_tokens_of_sentencepiece(
    metaspace: bool, prefix: bool, save_model: SaveModel, write: WriteGguf
) -> None:
    path = save_model("llama", vocab_size=SIZE + 8)
    save_sentencepiece(path, metaspace=metaspace, prefix=prefix)
    differs = metaspace and prefix  # where a note says that it does
    _check_tokens(path, write, [] if differs else UNUSUAL)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_perplexity_of_a_real_model(
    scheme: Any, stories: Path, write: WriteGguf, tmp_path: Path
) -> None:
    """A model that was trained, with Llama 2's kind of tokenizer: the checkpoint's perplexity in
    float32 is llama.cpp's, which rounds what quantized weights multiply."""
    path = save_quantized(stories, tmp_path / "quantized", 32, scheme, layout="compressed-tensors")
    shutil.copy(stories / "tokenizer.json", path)
    shutil.copy(stories / "tokenizer_config.json", path)
    tokens = Tokenizer(path).encode(STORY)
    model = LlamaCpp(write(path).path, len(tokens))
    assert model.tokens(STORY, special=True) == tokens
    found, expected = (
        float(np.exp(negative_log_likelihoods(each[:-1], np.array(tokens[1:])).mean()))
        for each in (model.logits(tokens), Reference(path).logits(tokens))
    )
    assert 1 < expected < 20  # it knows such stories
    assert found == pytest.approx(expected, rel=0.005)


def _check_tokens(path: Path, write: WriteGguf, texts: list[str]) -> None:
    tokenizer = Tokenizer(path)
    model = LlamaCpp(write(path).path, TOKENS, logits=False)
    for text in [*texts, *TEXTS, "".join(TEXTS), "x\n\n\ny 1234567 Ab'S"]:
        assert model.tokens(text) == tokenizer.encode(text, add_special_tokens=False), text
        assert model.tokens(text, special=True) == tokenizer.encode(text), text
