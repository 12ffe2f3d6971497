"""A plain model directory with some weights replaced, as peers leave it. No awq-edge in here."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def calibration_ids(path: Path) -> torch.Tensor:
    """The calibration set: int64 [samples, length]."""
    return load_file(path)["ids"]


def block_linears(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linears of a transformers model by full name, its output layer left out."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def write_model(source: Path, out: Path, changed: dict[str, torch.Tensor]) -> None:
    """Copy a model to `out` with tensors of its blocks replaced.

    changed: any dtype, by full name; written in float32. What the model does not store, as a
    quantizer's own buffers, is left out, and so are embeddings, which no peer here quantizes.
    """
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {}
    for file in sorted(source.glob("*.safetensors")):
        tensors |= load_file(file)
    for name, tensor in changed.items():
        if name in tensors and ".layers." in name:
            assert tensors[name].shape == tensor.shape, name
            tensors[name] = tensor.detach().float().cpu().contiguous()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def write_result(
    out: Path, *, bits_per_weight: float, seconds: float, device: str, versions: dict[str, str]
) -> None:
    """peer.json, which `experiments.quantizers.making` reads."""
    found = {
        "bits_per_weight": bits_per_weight,
        "seconds": seconds,
        "device": device,
        "versions": versions,
    }
    (out / "peer.json").write_text(json.dumps(found, indent=2) + "\n")
