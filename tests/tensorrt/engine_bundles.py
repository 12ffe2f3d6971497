"""Bundles for TensorRT of a tiny model, and engines that no TensorRT has made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from awq_edge.artifacts.directories import MANIFEST, Bundle, hash_file
from awq_edge.exporter.bundle import export_checkpoint
from awq_edge.kernels.interface import ABI_VERSION, LAYOUT_VERSION
from awq_edge.recipe.recipes import load_recipe
from awq_edge.tensorrt.contract import PLUGIN_VERSION
from awq_edge.tensorrt.engines import (
    EngineManifest,
    PluginContract,
    bundle_sha256,
    engine_name,
    profiles_of,
)
from awq_edge.tensorrt.engines.manifest import ENGINE_FILE, BuildFigures

RTX, JETPACK_7, JETPACK_6 = (
    "rtx-4070-laptop-8gb",
    "jetson-orin-nano-8gb",
    "jetson-orin-nano-8gb-jetpack6",
)


def tiny_checkpoint(folder: Path, scheme: str = "asymmetric") -> Path:
    """A quantized random llama: two layers of 64 channels."""
    from tests.exporter.models import save_quantized, save_random_model

    model = save_random_model(folder / "model", "llama")
    return save_quantized(model, folder / scheme, scheme=scheme)


def export_for(
    checkpoint: Path, out: Path, recipe: str, linear: str = "plugin", attention: str = "plugin"
) -> Bundle:
    """The bundle of a checkpoint for the runtime of a recipe; chunks of 64 tokens."""
    keys = {
        "export.linear": linear,
        "export.attention": attention,
        "export.prefill_chunk": 64,
    }
    asked = load_recipe(recipe, lm_head_bits=16).overridden(keys)
    return export_checkpoint(checkpoint, out, asked, model_name="tiny")


def make_engine(
    bundle: Bundle, root: Path, runtime: str, version: str, sm: str, changes: Mapping[str, Any] = {}
) -> Path:
    """An engine's folder under `root`: any bytes, and a manifest that matches but for `changes`."""
    folder = root / engine_name(runtime, version, sm)
    folder.mkdir(parents=True)
    (folder / ENGINE_FILE).write_bytes(bytes(range(256)) * 16)
    contract = PluginContract(
        plugin_version=PLUGIN_VERSION,
        layout_version=LAYOUT_VERSION,
        abi_version=ABI_VERSION,
        library_sha256="0" * 64,
    )
    fields: dict[str, Any] = {
        "awq_edge_version": "0",
        "commit": None,
        "model_name": "tiny",
        "runtime": runtime,
        "runtime_version": version,
        "sm": sm,
        "bundle_sha256": bundle_sha256(bundle),
        "plugin": contract,
        "profiles": profiles_of(bundle.manifest),
        "inputs": bundle.manifest.inputs,
        "outputs": bundle.manifest.outputs,
        "build": BuildFigures(seconds=1.0),
        "files": {ENGINE_FILE: hash_file(folder / ENGINE_FILE)},
    }
    manifest = EngineManifest(**{**fields, **changes})
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2))
    return folder


def edit_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle with other values in its manifest.json."""
    path = bundle.path / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return Bundle.open(bundle.path)
