"""Fixtures of the GGUF tests: tiny models with a tokenizer, and llama.cpp's own answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from awq_edge.model.checkpoint import Checkpoint
from tests.exporter.models import save_random_model
from tests.tiny_models import save_tokenizer

if TYPE_CHECKING:
    from awq_edge.exporter.gguf.file import GgufFile

VOCAB = 320  # of save_tokenizer
# What llama.cpp's graphs demand of the tiny models: heads of hidden_size / num_heads, experts in
# every layer, windows in the usual layers, and its own scale of scores.
_FEW_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
_OF_TYPE: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 32, "tie_word_embeddings": True},
    "gemma3_text": {
        "query_pre_attn_scalar": 32,
        "num_hidden_layers": 7,
        "sliding_window_pattern": 6,
    },
    "phi3": _FEW_HEADS,
    "qwen2": _FEW_HEADS,
    "qwen2_vl": {"rms_norm_eps": 1e-6},  # llama.cpp takes 0, whatever the file says
    "qwen3_moe": {"decoder_sparse_step": 1, "norm_topk_prob": True},
}

SaveModel = Callable[..., Path]
WriteGguf = Callable[..., "GgufFile"]


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    """A tiny random model that llama.cpp has, with a tokenizer."""

    def save(model_type: str, **config: Any) -> Path:
        settings = {"vocab_size": VOCAB, **_OF_TYPE.get(model_type, {}), **config}
        path = save_random_model(tmp_path / f"{model_type}-model", model_type, **settings)
        save_tokenizer(path)
        return path

    return save


@pytest.fixture
def write(tmp_path: Path) -> WriteGguf:
    """Write a checkpoint to tmp_path/model.gguf."""

    from awq_edge.exporter.gguf.file import plan_gguf, write_gguf

    def run(path: Path, output_bits: int = 16, **arguments: Any) -> GgufFile:
        plan = plan_gguf(Checkpoint.open(path), output_bits)
        return write_gguf(plan, tmp_path / "model.gguf", model_name="tiny", **arguments)

    return run


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file as float32, by the gguf package's reader and dequantization."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    return {
        tensor.name: dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        for tensor in GGUFReader(file).tensors
    }


def read_types(file: Path) -> dict[str, str]:
    """The type of every tensor of a file."""
    from gguf import GGUFReader

    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}


class LlamaCpp:
    """llama.cpp on a file, in float32 where the file is."""

    def __init__(self, file: Path, context: int, *, logits: bool = True) -> None:
        llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
        float32 = llama_cpp.GGML_TYPE_F32
        self.model = llama_cpp.Llama(
            str(file),
            n_threads=1,
            n_ctx=context,
            n_batch=context,
            n_ubatch=context,
            logits_all=logits,
            type_k=float32,
            type_v=float32,
            flash_attn=False,
            verbose=False,
        )

    def logits(self, ids: list[int]) -> np.ndarray:
        """float32 [len(ids), vocab]"""
        self.model.reset()
        self.model.eval(ids)
        return np.array(self.model.scores[: len(ids)])

    def tokens(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text, special tokens among it taken for what they are."""
        ids: list[int] = self.model.tokenize(text.encode(), add_bos=special, special=True)
        return ids
