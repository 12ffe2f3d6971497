"""Tiny random models of the real transformers classes, quantized checkpoints of them, references.

A reference is transformers itself in float32, on the same (dequantized) weights.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file as save_tensors

from awq_edge.model import w4a16
from awq_edge.model.archs import Decoder, decoder_from_config
from awq_edge.model.layouts import CheckpointFormats, layouts
from tests.arch_configs import model_class, tiny_config

VOCAB = 96
MAX_POSITIONS = 96
GROUP_SIZE = 32
# Grouped-query attention, and sizes that differ from each other.
TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": MAX_POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "sliding_window": None,
}


def tiny_decoder(model_type: str) -> Decoder:
    """The decoder of `save_random_model`'s configuration."""
    config = tiny_config(model_type, TINY)
    return decoder_from_config({"model_type": model_type, **config})


def save_random_model(path: Path, model_type: str, **config: Any) -> Path:
    """A model directory of float32 weights whose attention is sharp and norms are not all ones."""
    from transformers import AutoConfig

    torch.manual_seed(0)
    settings = AutoConfig.for_model(model_type, **tiny_config(model_type, TINY, **config))
    model = model_class(model_type).from_config(settings, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                noise = torch.rand_like(parameter)
                parameter.copy_(0.5 + noise if "norm" in name else noise - 0.5)
            else:
                # Queries and keys are large, so that it matters which positions are seen; routers
                # too, so that an expert that float16 exchanges for another counts for little.
                gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
                gain = 6.0 if name.endswith(".gate.weight") else gain
                scale = 1.0 if "embed" in name else gain * parameter.shape[1] ** -0.5
                parameter.normal_(0.0, scale)
    model.save_pretrained(path)
    return path


def save_quantized(
    source: Path,
    path: Path,
    group_size: int = GROUP_SIZE,
    scheme: w4a16.Scheme = "asymmetric",
    lm_head: bool = False,
    bits: int = 4,
    layout: str = "awq",
    others: Mapping[str, w4a16.NumberFormat] | None = None,
) -> Path:
    """The checkpoint of a model directory, rounded to nearest.

    others: linears by full name with another format than the rest.
    """
    config = json.loads((source / "config.json").read_text())
    decoder = decoder_from_config(config)
    main = w4a16.NumberFormat(bits, group_size, scheme)
    formats = {
        f"{decoder.layer_prefix(layer)}.{linear.name}": main
        for layer in range(decoder.num_layers)
        for linear in decoder.linears(layer)
    }
    if lm_head:
        formats["lm_head"] = main
    formats |= others or {}
    stored = layouts()[layout]
    tensors: dict[str, torch.Tensor] = {}
    quantized = {}
    dense = []
    for name, value in load_file(source / "model.safetensors").items():
        linear = name.removesuffix(".weight")
        number_format = formats.get(linear)
        if number_format is None or stored.obstacle(*value.shape, number_format):
            tensors[name] = torch.from_numpy(value.astype(np.float16))
            dense += [linear] if value.ndim == 2 and "embed" not in name else []
            continue
        rounded = w4a16.quantize(value, number_format.bits, number_format.group_size,
                                 number_format.scheme)  # fmt: skip
        arrays = (torch.from_numpy(a) for a in (rounded.codes, rounded.scales, rounded.zeros))
        tensors |= stored.pack(linear, *arrays, number_format)
        quantized[linear] = number_format
    config["quantization_config"] = stored.make_config(
        CheckpointFormats(main, quantized, dense, "rtn")
    )
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_tensors(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


class Reference:
    """transformers in float32 on the weights that a checkpoint stands for."""

    def __init__(self, path: Path) -> None:
        from awq_edge.model.checkpoint import Checkpoint

        checkpoint = Checkpoint.open(path)
        config = json.loads((path / "config.json").read_text())
        config.pop("quantization_config", None)
        tensors = {}
        for name in checkpoint.decoder.weight_shapes():
            linear = name.removesuffix(".weight")
            if checkpoint.is_quantized(linear):
                values = w4a16.dequantize(checkpoint.quantized(linear))
            else:
                values = checkpoint.dense(name)
            tensors[name] = torch.from_numpy(values.astype(np.float32))
        for name in checkpoint.kept_names:
            tensors[name] = torch.from_numpy(checkpoint.dense(name).astype(np.float32))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config))
            save_tensors(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            # Attention written out: others leave out soft caps.
            loaded = model_class(config["model_type"]).from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
            )
        self.model, report = loaded[0].eval(), loaded[1]
        missing = {name for name in report["missing_keys"] if not name.endswith("lm_head.weight")}
        assert not missing and not report["unexpected_keys"], report

    @torch.no_grad()
    def logits(self, ids: list[int]) -> np.ndarray:
        """float32 [len(ids), vocab]"""
        found = self.model(torch.tensor([ids]), use_cache=False).logits[0]
        return np.asarray(found.numpy())


def random_ids(count: int, vocab: int = VOCAB, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()
