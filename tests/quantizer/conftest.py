"""Tiny random models of the real transformers classes, one per architecture of the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from awq_edge.model.archs import architectures
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer.blocks.weights import read_finite
from tests.arch_configs import (
    AFTER_IMAGE,
    BEFORE_IMAGE,
    IMAGE_TOKEN,
    VIDEO_TOKEN,
    is_vision,
    model_class,
    tiny_config,
)

VOCAB = 128
# Grouped-query attention, a head size unlike hidden / heads, every bias that a config can ask for.
TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "attention_bias": True,
    "mlp_bias": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

IMAGE_TOKENS = {
    "<image>": IMAGE_TOKEN,
    "<video>": VIDEO_TOKEN,
    "<before>": BEFORE_IMAGE,
    "<after>": AFTER_IMAGE,
}
# 16 tokens an image, and as many as its size asks for.
IMAGE_PROCESSORS = {
    "llava": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
    },
    "qwen2_vl": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 4,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": 16 * 16,
        "max_pixels": 4096 * 4096,
    },
}


def build_model(model_type: str, seed: int = 0, **config: Any) -> Any:
    """A random model in float32. Norms are not all ones, biases not all zeros."""
    from transformers import AutoConfig

    torch.manual_seed(seed)
    settings = AutoConfig.for_model(model_type, **tiny_config(model_type, TINY, **config))
    model = model_class(model_type).from_config(settings, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                noise = torch.rand_like(parameter)
                parameter.copy_(0.5 + noise if "norm" in name else noise - 0.5)
            else:
                parameter.mul_(5)  # transformers starts at 0.02: too small for activations to vary
    return model


def save_model(model: Any, path: Path, **options: Any) -> Path:
    """A model directory with a tokenizer of single bytes, and of a vision-language model with its
    image processor. options: of save_pretrained."""
    model.save_pretrained(path, **options)
    special = IMAGE_TOKENS if is_vision(model.config.model_type) else {}
    vocabulary = {chr(i) if 32 <= i < 127 else f"<{i}>": i for i in range(VOCAB)}
    for text, token_id in special.items():
        del vocabulary[f"<{token_id}>"]
        vocabulary[text] = token_id
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<0>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 128}))
    processor = IMAGE_PROCESSORS.get(model.config.model_type)
    if processor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


@pytest.fixture(scope="session", params=list(architectures()))
def model_type(request: pytest.FixtureRequest) -> str:
    """Every architecture of awq_edge/model/archs."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_model(model_type: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny random model of the architecture."""
    return save_model(build_model(model_type), tmp_path_factory.mktemp(model_type))


@pytest.fixture(scope="session")
def calibration_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text with enough tokens for small calibration sets."""
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text("".join(f"{i} the quick brown fox {i * i} jumps; " for i in range(400)))
    return path


@pytest.fixture(scope="session", params=[name for name in architectures() if is_vision(name)])
def vision_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny random vision-language model, with its image processor."""
    name = str(request.param)
    return save_model(build_model(name, seed=1), tmp_path_factory.mktemp(name))


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of one whose images have 16 tokens, whatever their size."""
    return save_model(build_model("llava", seed=1), tmp_path_factory.mktemp("llava"))


def load_block(checkpoint: Checkpoint, layer: int) -> dict[str, torch.Tensor]:
    """The weights of a block by name relative to it, float32."""
    prefix = checkpoint.decoder.layer_prefix(layer)
    names = checkpoint.decoder.block_shapes(layer)
    cpu = torch.device("cpu")
    return {name: read_finite(checkpoint, f"{prefix}.{name}", cpu) for name in names}
