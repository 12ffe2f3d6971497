"""A model that computes the same function, with channels that matter more than others.

Large trained models have them, a small one trained for an hour does not. Some channels of each
norm, and some rows of the up projection, are multiplied by 10 to 40; the columns that read them are
divided by the same.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from awq_edge.archs import Decoder
from awq_edge.checkpoint import Checkpoint
from awq_edge.errors import ConfigError

FACTORS = (10.0, 40.0)
SALIENT_SHARE = 0.02  # of the channels of each input


def make_salient(source: Path, out: Path) -> Path:
    """Write the model with salient channels to the directory `out`, in float32; returns `out`.

    Raises ConfigError for a model whose blocks are not those of a Llama (a norm before q, k, v; a
    norm before gate and up; up before down).
    """
    checkpoint = Checkpoint.open(source)
    decoder = checkpoint.decoder
    tensors: dict[str, npt.NDArray[np.float32]] = {
        name: checkpoint.dense(name).astype(np.float32) for name in decoder.weight_shapes()
    }
    random = np.random.default_rng(0)
    for layer in range(decoder.num_layers):
        for previous, readers, size in _pairs(decoder):
            channels = random.choice(size, int(size * SALIENT_SHARE), replace=False)
            factors = random.uniform(*FACTORS, len(channels)).astype(np.float32)
            prefix = decoder.layer_prefix(layer)
            scaled = tensors[f"{prefix}.{previous}.weight"]
            scaled[channels] *= factors if scaled.ndim == 1 else factors[:, None]
            bias = tensors.get(f"{prefix}.{previous}.bias")
            if bias is not None:
                bias[channels] *= factors
            for reader in readers:
                tensors[f"{prefix}.{reader}.weight"][:, channels] /= factors
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def _pairs(decoder: Decoder) -> list[tuple[str, tuple[str, ...], int]]:
    """What is multiplied, what reads it, and how many channels lie between."""
    groups = {group.name: group for group in decoder.scale_groups()}
    sizes = {
        "attention_in": decoder.hidden_size,
        "mlp_in": decoder.hidden_size,
        "mlp_out": decoder.intermediate_size,
    }
    missing = [name for name in sizes if name not in groups or groups[name].readers]
    if missing:
        raise ConfigError(
            f"model_type {decoder.model_type} has no plain scale group {', '.join(missing)}, into "
            "which salient channels could be put; give --no-salient"
        )
    return [(groups[name].previous, groups[name].linears, size) for name, size in sizes.items()]
