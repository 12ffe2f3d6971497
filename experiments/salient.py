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

from awq_edge.errors import ConfigError
from awq_edge.model.archs import Decoder, ScaleGroup
from awq_edge.model.checkpoint import Checkpoint

FACTORS = (10.0, 40.0)
SALIENT_SHARE = 0.02  # of the channels of each input


def make_salient(source: Path, out: Path) -> Path:
    """Write the model with salient channels to the directory `out`, in float32; returns `out`.

    Raises ConfigError for a model whose norms and up projections cannot take a scale.
    """
    checkpoint = Checkpoint.open(source)
    decoder = checkpoint.decoder
    tensors: dict[str, npt.NDArray[np.float32]] = {
        name: checkpoint.dense(name).astype(np.float32) for name in decoder.weight_shapes()
    }
    random = np.random.default_rng(0)
    for layer in range(decoder.num_layers):
        for group, size in _groups(decoder, layer):
            channels = random.choice(size, int(size * SALIENT_SHARE), replace=False)
            factors = random.uniform(*FACTORS, len(channels)).astype(np.float32)
            prefix = decoder.layer_prefix(layer)
            scaled = tensors[f"{prefix}.{group.previous}.weight"]
            rows = channels if group.rows is None else channels + group.rows[0]
            if group.kind == "norm":
                offset = decoder.norm_offset
                scaled[rows] = (scaled[rows] + offset) * factors - offset
            else:
                scaled[rows] *= factors[:, None]
            bias = tensors.get(f"{prefix}.{group.previous}.bias")
            if bias is not None:
                bias[rows] *= factors
            for reader in group.linears:
                tensors[f"{prefix}.{reader}.weight"][:, channels] /= factors
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def _groups(decoder: Decoder, layer: int) -> list[tuple[ScaleGroup, int]]:
    """The scale groups that get salient channels, with the number of channels of their input."""
    groups = {group.name: group for group in decoder.scale_groups(layer)}
    sizes = {
        "attention_in": decoder.hidden_size,
        "mlp_in": decoder.hidden_size,
        "mlp_out": decoder.intermediate_size,
    }
    found = []
    for name, size in sizes.items():
        group = groups.get(name)
        if group is None or group.kind == "none" or group.readers:
            raise ConfigError(
                f"model_type {decoder.model_type} has no plain scale group {name}, into which "
                "salient channels could be put; give --no-salient"
            )
        found.append((group, size))
    return found
